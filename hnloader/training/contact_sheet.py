"""The contact sheet of a dataset: each image at its training size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnloader.grids import labeled_grid
from hnloader.training.config import DataConfig
from hnloader.training.dataset import Dataset
from hnloader.training.pixels import load_sample

if TYPE_CHECKING:
    from PIL.Image import Image

_CELL = 160
_COLUMNS = 6
# Image sizes are multiples of this in Stable Diffusion 1, 2 and XL.
SIZE_MULTIPLE = 64


def contact_sheet(dataset: Dataset, config: DataConfig, resolution: int) -> Image:
    """Return a grid of all images, scaled and cropped for a resolution, with their file names."""
    from PIL import Image

    cells: list[Image.Image | None] = []
    for image in dataset.images:
        pixels = load_sample(image, config, resolution, SIZE_MULTIPLE).pixels
        cells.append(Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()))
    labels = [_printable(image.path.name) for image in dataset.images]
    columns = min(_COLUMNS, len(cells))
    cells += [None] * (-len(cells) % columns)
    starts = range(0, len(cells), columns)
    return labeled_grid(
        [cells[start : start + columns] for start in starts],
        columns=[str(index + 1) for index in range(columns)],
        rows=[", ".join(labels[start : start + columns]) for start in starts],
        title=_printable(dataset.folder.name),
        caption=f"{len(dataset.images)} training images",
        cell=_CELL,
    )


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
