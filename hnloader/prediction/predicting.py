"""Predict a hypernetwork from images of a style."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hnloader.errors import DatasetError, HypernetworkError
from hnloader.files import expanded, sha256_of
from hnloader.network import Hypernetwork
from hnloader.pipelines import Model
from hnloader.prediction.model_sample import check_model
from hnloader.prediction.predictor import Emitted, spread_of
from hnloader.prediction.predictor_file import StoredPredictor
from hnloader.training.config import DataConfig
from hnloader.training.dataset import Problem, TrainingImage, image_files, read_images
from hnloader.training.denoiser import Denoiser
from hnloader.training.pixels import load_sample
from hnloader.units import counted

Images: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"

MOST_IMAGES = 20
_MOST_NOTES = 10
# Differences of pixels, -1 to 1, that count as one color: JPEG changes a color a little.
_ONE_COLOR = 0.05
_SQUARES = DataConfig(buckets=False, random_flip=False)


@dataclass(frozen=True)
class Prediction:
    """A predicted hypernetwork, and notes for the user."""

    hypernetwork: Hypernetwork
    notes: tuple[str, ...]


class StylePredictor:
    """A predictor with its model.

    Args:
        stored: The predictor.
        model: The model. Its weights are frozen.

    Raises:
        OtherModelError: The predictor is for another model.
        NoMatchingSitesError: The model has none of the attention layers of the hypernetworks.
    """

    def __init__(self, stored: StoredPredictor, model: Model) -> None:
        self.stored, self.model = stored, model
        self._denoiser = Denoiser(model.pipeline)
        note = check_model(stored, self._denoiser)
        self._notes = (note,) if note else ()
        self._predictor = stored.predictor.to(self._denoiser.device)
        self._hash = sha256_of(stored.path)

    def predict(self, images: Images, *, toward: Images | None = None, mix: float = 0.5, name: str = "") -> Prediction:
        """Predict a hypernetwork; see `predict`."""
        if not 0 <= mix <= 1:
            raise HypernetworkError(f"Mix: expected a number from 0 to 1, got {float(mix):g}. 0 is the first style.")
        emitted, notes, used = self._emit(images)
        if toward is not None:
            other, more, also = self._emit(toward)
            emitted, notes, used = emitted.mixed(other, mix), [*notes, *more], [*used, *also]
        made = self._predictor.hypernetwork(emitted, name).cpu()
        made.metadata |= self._metadata(used, name) | ({} if toward is None else {"mix": mix})
        return Prediction(made, (*self._notes, *notes))

    def _metadata(self, images: Sequence[TrainingImage], name: str) -> dict[str, object]:
        return {
            "step": 0,
            "name": name,
            "sd_checkpoint": self.model.hash,
            "sd_checkpoint_name": self.model.name,
            "predictor": self.stored.path.name,
            "predictor_sha256": self._hash,
            "images_sha256": [image.digest for image in images],
        }

    @torch.no_grad()
    def _emit(self, images: Images) -> tuple[Emitted, list[str], list[TrainingImage]]:
        """Return what the predictor emits for images, notes, and the images that it used."""
        entries, notes = read_style(images)
        pairs = [(entry, latents) for entry in entries if (latents := self._latents(entry)) is not None]
        if not pairs:
            raise DatasetError(f"{_label(images)}: every image has a single color. Use images that show a style.")
        for entry in entries:
            if all(entry is not used for used, _ in pairs):
                notes.append(f"{entry.path.name}: the image has a single color and is excluded.")
        encoder = self._predictor.encoder
        summaries = torch.cat([encoder.summaries(latents.unsqueeze(0)) for _, latents in pairs])
        emitted = self._predictor.emit(encoder(summaries.unsqueeze(0)))
        spread = spread_of(self._predictor.emit(encoder(summaries.unsqueeze(1))))
        usual = self.stored.about.spread
        if usual and spread > usual:
            notes.append(
                f"{_label(images)}: the images look unrelated. Their styles differ by {spread:.2f}, and those of one "
                f"style by at most {usual:.2f}. Use images of one style."
            )
        return emitted, notes, [entry for entry, _ in pairs]

    def _latents(self, entry: TrainingImage) -> Tensor | None:
        """Return the latents of an image; None for a single color."""
        sample = load_sample(entry, _SQUARES, self.stored.about.resolution, self._denoiser.size_multiple)
        values = sample.pixels.flatten(1)
        if float((values.amax(1) - values.amin(1)).max()) < _ONE_COLOR:
            return None
        mean, _ = self._denoiser.encode_image(sample)
        return mean.to(self._denoiser.device)


def read_style(images: Images) -> tuple[list[TrainingImage], list[str]]:
    """Return the images of a style and notes about problems; raise DatasetError without usable images."""
    if isinstance(images, (str, os.PathLike)):
        place = expanded(images)
        single = place.is_file()
        folder, files = (place.parent, [place]) if single else (place, image_files(place))
        dataset = read_images(folder, files, _SQUARES)
    else:
        files = [expanded(image) for image in images]
        if not files:
            raise DatasetError("Images: found none. Give a folder or at least one image.")
        dataset = read_images(files[0].parent, files, _SQUARES)
    notes = list(_problems(dataset.problems))
    if len(dataset.images) > MOST_IMAGES:
        notes.append(f"Found {len(dataset.images)} images. The first {MOST_IMAGES} are used.")
    return dataset.images[:MOST_IMAGES], notes


def _problems(problems: Sequence[Problem]) -> Iterator[str]:
    for problem in problems[:_MOST_NOTES]:
        yield f"{problem.path.name}: {problem.message}{' The image is excluded.' if problem.excluded else ''}"
    if len(problems) > _MOST_NOTES:
        yield f"{counted(len(problems) - _MOST_NOTES, 'more problem')}."


def _label(images: Images) -> str:
    return f"{images}" if isinstance(images, (str, os.PathLike)) else "Images"
