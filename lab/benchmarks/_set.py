"""Make the files on which conversion and inspection are measured: 22 to 202 MB, as a webui saves them."""

from __future__ import annotations

import os
from pathlib import Path

import hnloader
from hnloader.network import Architecture, Hypernetwork

WIDTHS = (320, 640, 768, 1280)
RATIOS = (0.5, 1.3, 2.2, 3.4, 4.6)  # of hidden width to width; 22 to 202 MB in float32


def make_files(folder: Path) -> list[Path]:
    """Save a file for each of `RATIOS`, the smallest first."""
    made = []
    for ratio in RATIOS:
        hypernetwork = Hypernetwork.new(WIDTHS, Architecture((1, ratio, 1), "relu"), name=f"r{ratio}")
        hnloader.save(hypernetwork.requires_grad_(False), folder / f"r{ratio}.pt")
        made.append(folder / f"r{ratio}.pt")
    return made


def multiplied(files: list[Path], count: int, folder: Path) -> list[Path]:
    """Make `count` hard links to the files in turns, so that a large set stays in the page cache."""
    folder.mkdir()
    links = []
    for index in range(count):
        source = files[index % len(files)]
        links.append(folder / f"{index:04}{source.suffix}")
        os.link(source, links[-1])
    return links


def megabytes(files: list[Path]) -> str:
    """Describe the number and the sizes of files."""
    sizes = [path.stat().st_size / 1e6 for path in files]
    return f"{len(files)} files of {min(sizes):.0f} to {max(sizes):.0f} MB, {sum(sizes) / 1e3:.1f} GB"
