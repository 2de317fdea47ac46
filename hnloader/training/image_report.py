"""The parts of a training report about images: previews, thumbnails and problems."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.errors import HypernetworkError
from hnloader.images import OWN_PREVIEWS, read_image
from hnloader.training import html
from hnloader.training.dataset import Dataset, TrainingImage, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

_THUMBNAIL = 128
_MAX_THUMBNAILS = 60


def previews_section(folder: Path) -> Iterator[str]:
    """Yield the sections with the tiled previews and the newest grid of strengths, if there are any."""
    newest = max(folder.glob("strengths-*.png"), default=folder / "strengths.png")
    for path, title, words in (
        (folder / "previews.png", "Previews", "preview images by step"),
        (newest, "Strengths", "preview images by strength"),
    ):
        if path.is_file():
            with contextlib.suppress(HypernetworkError):
                yield html.section(title, html.image_tag(read_image(path, OWN_PREVIEWS).image, words))


def images_section(dataset: Dataset, validation: Sequence[TrainingImage]) -> str:
    """Return the section with the training images and their problems."""
    shown = figures_of(dataset.images[:_MAX_THUMBNAILS], validation)
    return html.section("Images", html.figures(shown), _problems(dataset))


def figures_of(
    images: Sequence[TrainingImage], validation: Sequence[TrainingImage] = ()
) -> Iterator[tuple[Image, str]]:
    """Yield thumbnails of images with their names and captions, for `html.figures`."""
    digests = {image.digest for image in validation}
    for found in images:
        label = found.path.name + (" (validation)" if found.digest in digests else "")
        label += f": {found.caption}" if found.caption else ""
        try:
            small = open_image(found.path, shortest=_THUMBNAIL).image
        except HypernetworkError:
            continue  # removed during the training
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        yield small.convert("RGB"), label


def _problems(dataset: Dataset) -> str:
    more = len(dataset.images) - _MAX_THUMBNAILS
    note = f"<p>{more} more images</p>" if more > 0 else ""
    rows = [("excluded" if each.excluded else "note", each.path.name, each.message) for each in dataset.problems]
    return note + (html.table(rows) if rows else "")
