"""The contact sheet of a data set: each image as it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnloader.grids import labeled_grid
from hnloader.training.config import DataConfig
from hnloader.training.dataset import Dataset
from hnloader.training.pixels import prepare

if TYPE_CHECKING:
    from PIL.Image import Image

_CELL = 160
_COLUMNS = 6
# Sizes of images are multiples of it in Stable Diffusion 1, 2 and XL.
GRAIN = 64


def contact_sheet(found: Dataset, data: DataConfig, side: int) -> Image:
    """Every image, cut and scaled to about `side` squared, with the files' names."""
    from PIL import Image

    cells: list[Image.Image | None] = []
    for image in found.images:
        pixels = prepare(image, data, side, GRAIN).pixels
        cells.append(Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()))
    labels = [_printable(image.path.name) for image in found.images]
    columns = min(_COLUMNS, len(cells))
    cells += [None] * (-len(cells) % columns)
    starts = range(0, len(cells), columns)
    return labeled_grid(
        [cells[start : start + columns] for start in starts],
        columns=[str(index + 1) for index in range(columns)],
        rows=[", ".join(labels[start : start + columns]) for start in starts],
        title=_printable(found.folder.name),
        caption=f"{len(found.images)} images as they are trained",
        cell=_CELL,
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
