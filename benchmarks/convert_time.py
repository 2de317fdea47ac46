"""How long converting takes beside copying the same files with `cp`, what its proof costs, and its memory.

    python -m benchmarks.convert_time [--files 300] [--folder DIR]

Files of 20 to 200 MB, evenly spread, from a few distinct ones (the others are links to them, since the cache is warm
either way). Each is copied and converted in turns, to .safetensors and back to .pt, without and with the proof;
results are removed at once, so that the disk needs room for a handful of files only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import hnloader
from hnloader.conversion import convert
from hnloader.network import Architecture, Hypernetwork

WIDTHS = (320, 640, 768, 1280)
# Hidden layers of these many times the width make 22 to 200 MB in float32.
RATIOS = (0.5, 1.3, 2.2, 3.4, 4.6)


def make_files(folder: Path) -> list[Path]:
    """The distinct files, as a webui saves them."""
    made = []
    for ratio in RATIOS:
        hypernetwork = Hypernetwork.new(WIDTHS, Architecture((1, ratio, 1), "relu"), name=f"r{ratio}")
        hnloader.save(hypernetwork.requires_grad_(False), folder / f"r{ratio}.pt")
        made.append(folder / f"r{ratio}.pt")
    return made


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(sources: list[Path], count: int, folder: Path) -> dict[str, float]:
    """Seconds in all for each way, taken in turns file by file."""
    total: dict[str, float] = {}
    for index in range(count):
        source = sources[index % len(sources)]
        middle, copy, back = folder / "m.safetensors", folder / "copy.pt", folder / "back.pt"
        convert(source, middle, prove=False)
        ways: dict[str, Callable[[], object]] = {
            "cp": lambda: subprocess.run(["cp", str(source), str(copy)], check=True),  # noqa: B023
            "cp and sync": lambda: _copy_and_sync(source, copy),  # noqa: B023
            "sha256 alone": lambda: _sha256(source),  # noqa: B023
            "to safetensors": lambda: convert(source, middle, prove=False),  # noqa: B023
            "to pt": lambda: convert(middle, back, prove=False),  # noqa: B023
            "to safetensors, proved": lambda: convert(source, middle),  # noqa: B023
            "to pt, proved": lambda: convert(middle, back),  # noqa: B023
        }
        order = list(ways) if index % 2 else list(reversed(ways))
        for name in order:
            total[name] = total.get(name, 0.0) + seconds(ways[name])
        for path in (middle, copy, back):
            path.unlink()
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _copy_and_sync(source: Path, target: Path) -> None:
    """As `cp`, and what a conversion does besides: the data are on the disk before the file takes its name."""
    subprocess.run(["cp", str(source), str(target)], check=True)
    with target.open("r+b") as file:
        os.fsync(file.fileno())


_CHILD = """
import sys, torch
from hnloader.conversion import convert
import hnloader.conversion.single

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

open("/proc/self/clear_refs", "w").write("5")  # the peak of the imports does not count
before = status("VmRSS")
convert(sys.argv[1], sys.argv[2], prove=sys.argv[3] == "True")
print(status("VmHWM") - before)
"""


def peak_memory(source: Path, target: Path, prove: bool) -> float:
    """MB of resident memory above an interpreter with torch and hnloader imported; Linux tells."""
    command = [sys.executable, "-c", _CHILD, str(source), str(target), str(prove)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    target.unlink()
    return int(result.stdout) * 1024 / 1e6


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10, help="how many (default: 10; the full figure: 300)")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the system's)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        sources = make_files(folder)
        sizes = [sources[index % len(sources)].stat().st_size / 1e6 for index in range(chosen.files)]
        total = measure(sources, chosen.files, folder)
        print(f"{chosen.files} files of {min(sizes):.0f} to {max(sizes):.0f} MB, {sum(sizes) / 1e3:.1f} GB")
        for way, spent in total.items():
            print(f"  {way:<24} {spent:7.2f} s  {spent / total['cp']:5.2f} x cp  {sum(sizes) / spent:6.0f} MB/s")
        for source in (sources[0], sources[-1]):
            for prove in (False, True):
                peak = peak_memory(source, folder / "m.safetensors", prove)
                proof = "with the proof" if prove else "without proof"
                print(f"  memory, {source.stat().st_size / 1e6:.0f} MB {proof}: {peak:.0f} MB above the interpreter")


if __name__ == "__main__":
    main()
