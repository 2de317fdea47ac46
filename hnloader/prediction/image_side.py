"""The Stable Diffusion model of a predictor that reads images."""

from __future__ import annotations

import torch
from torch import Tensor

from hnloader.errors import DatasetError
from hnloader.pipelines import Model
from hnloader.prediction.model_side import (
    MOST_EXAMPLES,
    Examples,
    ModelSide,
    StyleValues,
    files_to_read,
    label_of,
    listed,
)
from hnloader.training.config import DataConfig
from hnloader.training.dataset import Dataset, Problem, TrainingImage, image_files, read_images
from hnloader.training.denoiser import Denoiser
from hnloader.training.pixels import Sample, load_sample

# Differences of pixels, -1 to 1, that count as one color: JPEG changes a color a little.
_ONE_COLOR = 0.05
_SQUARES = DataConfig(buckets=False, random_flip=False)
_SIDE = 64  # pixels of the test image; every model's VAE takes it


class ImageSide(ModelSide):
    """A Stable Diffusion model, whose VAE reads the images.

    Args:
        model: The model.
        resolution: Side of the square images, in pixels.
        denoiser: The model in a training run. Default: one without offloaded parts.
    """

    kind = "image"
    most_difference = 0.05
    reads = "latents"
    differs = "another VAE"

    def __init__(self, model: Model, resolution: int, denoiser: Denoiser | None = None) -> None:
        self.model, self.resolution = model, resolution
        self.denoiser = Denoiser(model.pipeline) if denoiser is None else denoiser
        self.network = self.denoiser.unet
        self.input_size = int(self.denoiser.vae.config.latent_channels)

    @property
    def device(self) -> torch.device:
        """See `ModelSide`."""
        return self.denoiser.device

    def probe(self) -> Tensor:
        """See `ModelSide`."""
        found, _ = self.denoiser.encode_image(Sample(_test_image(), None, (_SIDE, _SIDE), (0, 0)))
        return found

    def values_of(self, examples: Examples) -> StyleValues:
        """See `ModelSide`."""
        dataset = _read(examples)
        found = StyleValues(notes=list(listed([_shown(problem) for problem in dataset.problems])))
        if len(dataset.images) > MOST_EXAMPLES:
            found.notes.append(f"Found {len(dataset.images)} images. The first {MOST_EXAMPLES} are used.")
        for image in dataset.images[:MOST_EXAMPLES]:
            latents = self._latents(image)
            if latents is None:
                found.notes.append(f"{image.path.name}: the image has a single color and is excluded.")
            else:
                found.values.append(latents)
                found.digests.append(image.digest)
        if not found.values:
            raise DatasetError(
                f"{label_of(examples, self.kind)}: every image has a single color. Use images that show a style."
            )
        return found

    def _latents(self, image: TrainingImage) -> Tensor | None:
        """Return the latents of an image; None for a single color."""
        sample = load_sample(image, _SQUARES, self.resolution, self.denoiser.size_multiple)
        values = sample.pixels.flatten(1)
        if float((values.amax(1) - values.amin(1)).max()) < _ONE_COLOR:
            return None
        mean, _ = self.denoiser.encode_image(sample)
        return mean.to(self.device)


def _read(examples: Examples) -> Dataset:
    """Read the images of a folder or of files; raise DatasetError without usable ones."""
    places = files_to_read(examples, "image")
    if len(places) == 1 and not places[0].is_file():
        return read_images(places[0], image_files(places[0]), _SQUARES)
    return read_images(places[0].parent, places, _SQUARES)


def _shown(problem: Problem) -> str:
    return f"{problem.path.name}: {problem.message}{' The image is excluded.' if problem.excluded else ''}"


def _test_image() -> Tensor:
    """Return a colored image with slopes and edges, [3, side, side], -1 to 1."""
    axis = torch.linspace(-1, 1, _SIDE)
    red = axis.expand(_SIDE, _SIDE)
    blue = torch.where(red.abs() + red.t().abs() < 0.7, 1.0, -0.5)
    return torch.stack([red, red.t(), blue])
