"""The library in the documentation's screenshots."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from hnloader.demo import hypernetwork_paths
from hnloader.ui.sidecars import save_notes
from tests.support.builders import Recipe, make_sides, metadata, tree, write
from tests.support.paths import ROOT

STYLES = {
    "watercolor": (Recipe(structure=(1, 0.05, 1), activation="relu"), (768,), 9000),
    "ink wash": (Recipe(structure=(1, 0.1, 0.1, 1), activation="mish", norm=True), (768,), 22000),
    "neon": (Recipe(structure=(1, 0.05, 1), activation="linear"), (1024,), 4000),
    "oil": (Recipe(structure=(1, 0.05, 1), activation="swish"), (2048,), 12500),
    "pixel": (Recipe(structure=(1, 0.1, 1), activation="gelu"), (768, 320), 800),
}


def make_album(folder: Path) -> Path:
    """Copy the bundled hypernetworks with previews and notes; add files for other models and one with an error."""
    (folder / "sketches").mkdir(parents=True, exist_ok=True)
    for style, path in hypernetwork_paths().items():
        shutil.copy(path, folder)
        _preview(style).save(folder / f"{style}.preview.png")
    save_notes(folder / "outline.pt", "Strength 0.8 to 1. Works with every color.")
    for name, (recipe, widths, step) in STYLES.items():
        target = folder / ("sketches" if name == "ink wash" else "") / f"{name}.pt"
        write(target, tree(make_sides(recipe, widths), metadata(recipe, "2022-11", name=name, step=step)))
    (folder / "download.pt").write_text("<!DOCTYPE html><html><title>404</title></html>")
    return folder


def _preview(style: str) -> Image.Image:
    """Cut the image of a style at strength 1 from the demo's grid."""
    column = {"halftone": 2, "outline": 5}[style]
    with Image.open(ROOT / "docs" / "images" / "demo.png") as grid:
        right = grid.width - 28
        cell = 192
        left = right - cell - (5 - column) * (cell + 10) - (20 if column < 3 else 0)
        return grid.crop((left, grid.height - 28 - 4 * cell - 30, left + cell, grid.height - 28 - 3 * cell - 30))
