"""The styles that a predictor is trained on: a folder of images for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hnloader.errors import DatasetError
from hnloader.training.config import DataConfig
from hnloader.training.dataset import TrainingImage, image_files, read_images
from hnloader.units import counted

# The images to predict from, and one to denoise.
LEAST_IMAGES = 2
_MOST_NOTES = 10


@dataclass(frozen=True)
class Style:
    """Images of one style."""

    name: str
    images: Sequence[TrainingImage]


@dataclass
class StyleFolders:
    """The styles of a folder, and notes about those that are left out."""

    styles: list[Style] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return a hash of the images and their captions."""
        parts = [[image.digest, image.caption] for style in self.styles for image in style.images]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read_styles(folder: Path, config: DataConfig, progress: Callable[[int, int], None] | None = None) -> StyleFolders:
    """Read the styles of a folder: each of its folders with at least two usable images.

    Args:
        folder: The folder.
        config: The settings for images and captions.
        progress: Called with the number of styles that are done and the number of all styles.

    Raises:
        DatasetError: The folder does not exist, or has fewer than two styles.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: found no such folder. Name the folder with the styles.")
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found, problems = StyleFolders(), 0
    for index, place in enumerate(places):
        if progress is not None:
            progress(index, len(places))
        try:
            dataset = read_images(place, image_files(place), config)
            problems += len(dataset.problems)
        except DatasetError as error:
            found.notes.append(f"{error} The style is excluded.")
            continue
        if len(dataset.images) < LEAST_IMAGES:
            found.notes.append(f"{place.name}: found a single usable image. The style is excluded.")
        else:
            found.styles.append(Style(place.name, dataset.images))
    if len(found.styles) < 2:
        raise DatasetError(
            f"{folder}: found {counted(len(found.styles), 'style')}. Use at least two, with a folder "
            f"of at least {LEAST_IMAGES} images for each."
        )
    if problems:
        found.notes.append(
            f"{counted(problems, 'problem')} with images. `hnloader dataset check` lists those of a style."
        )
    more = len(found.notes) - _MOST_NOTES
    if more > 0:
        found.notes[_MOST_NOTES:] = [f"{counted(more, 'more note')}."]
    return found
