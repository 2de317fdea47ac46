"""Styles of images: some to predict a hypernetwork from, and another image of the style to denoise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Generator, Tensor

from hnloader.attention import attach
from hnloader.network import Hypernetwork
from hnloader.pipelines import Model
from hnloader.prediction.image_side import ImageSide
from hnloader.prediction.style_data import VALIDATION_TARGETS, StyleBatch, StyleData
from hnloader.prediction.style_folders import Style, read_styles
from hnloader.training import html
from hnloader.training.cache import Cache
from hnloader.training.captions import caption_of
from hnloader.training.config import Config
from hnloader.training.dataset import TrainingImage, image_files, read_images
from hnloader.training.denoiser import Batch, Denoiser
from hnloader.training.image_report import figures_of, previews_section
from hnloader.training.previews import generate_image, save_previews, tile_previews
from hnloader.training.run_folder import run_folder
from hnloader.training.sampler import generator_for, random_below, random_float

# The validation loss is measured at these shares of the timesteps.
_VALIDATION_TIMES = tuple((index + 0.5) / 8 for index in range(8))


class ImageStyles(StyleData[TrainingImage, Batch]):
    """Folders of images, and a Stable Diffusion model.

    Args:
        config: Checked settings.
        denoiser: The model.
        folder: The folder of the styles.
        model: The name and the hash of the model.
    """

    side: ImageSide

    def __init__(self, config: Config, denoiser: Denoiser, folder: Path, model: Model) -> None:
        folders = read_styles(
            folder, "image", lambda place: _read(place, config), lambda image: [image.digest, image.caption]
        )
        multiple = denoiser.size_multiple
        self.resolution = max((config.data.resolution or denoiser.resolution) // multiple, 1) * multiple
        super().__init__(config, ImageSide(model, self.resolution, denoiser), folders)
        self.model_hash, self.dtype = denoiser.fingerprint("unet"), denoiser.dtype
        self._denoiser = denoiser
        self._cache = Cache(run_folder(Path(config.output)) / "cache", denoiser, config.data, self.resolution)

    def training(self, step: int, styles: Sequence[Style[TrainingImage]]) -> StyleBatch[Batch]:
        """See `StyleData`."""
        random, rows = self.drawn("styles", step, styles, self.config.batch_size)
        references: list[Tensor] = []
        targets: list[tuple[TrainingImage, str]] = []
        for given, (image, *_) in rows:
            dropped = random_float(random) < self.config.data.caption_dropout
            targets.append((image, "" if dropped else self._caption(image, random_below(random, 2**31))))
            references.append(self.references(given))
        timesteps = [self._timestep(random_float(random)) for _ in targets]
        return StyleBatch(torch.stack(references), self._batch(targets, timesteps, random, sampled=True))

    def validation(self, styles: Sequence[Style[TrainingImage]]) -> list[StyleBatch[Batch]]:
        """See `StyleData`; the timesteps and the noise are fixed."""
        given, batches = self.validation_references(styles), []
        for place, share in enumerate(_VALIDATION_TIMES):
            timestep = int(share * (len(self._denoiser.alphas_cumprod) - 1))
            for number in range(1, VALIDATION_TARGETS + 1):
                images = self.validation_targets(styles, number)
                random = generator_for(0, "validation styles", place * VALIDATION_TARGETS + number)
                targets = [(image, self._caption(image, 0)) for image in images]
                batches.append(StyleBatch(given, self._batch(targets, [timestep] * len(images), random, sampled=False)))
        return batches

    def references(self, examples: Sequence[TrainingImage]) -> Tensor:
        """See `StyleData`."""
        return torch.stack([self._cache.latents(image).mean for image in examples]).to(self._denoiser.device)

    def captions(self, examples: Sequence[TrainingImage]) -> Tensor:
        """See `StyleData`; the means of the text states over the tokens."""
        states = [self._cache.text(self._caption(image, 0)).states.mean(0) for image in examples]
        return torch.stack(states).to(self._denoiser.device)

    def loss(self, target: Batch) -> Tensor:
        """See `StyleData`."""
        return self._denoiser.losses(target, self.config.snr_gamma).mean()

    def preview(
        self, made: Sequence[tuple[Style[TrainingImage], Hypernetwork]], folder: Path, step: int
    ) -> Sequence[Image]:
        """See `StyleData`."""
        config, images, prompts = self.config.previews, list[Image](), list[str]()
        for index, (style, hypernetwork) in enumerate(made):
            prompt = self.prompt(index, style.examples[-1].caption or "")
            with attach(self._denoiser.unet, hypernetwork, 1.0), self._denoiser.loaded():
                images.append(generate_image(self._denoiser.pipeline, prompt, config.seed + index, config))
            prompts.append(f"{style.name}: {prompt}")
        save_previews(images, folder, step)
        tile_previews(folder, prompts)
        return images

    def previews_section(self, folder: Path) -> Iterator[str]:
        """See `StyleData`."""
        return previews_section(folder)

    def figures(self, examples: Sequence[TrainingImage]) -> str:
        """See `StyleData`."""
        return html.figures(figures_of(examples))

    def _timestep(self, share: float) -> int:
        """Return a timestep for a random number from 0 to 1."""
        count = len(self._denoiser.alphas_cumprod)
        return min(int((1 - (1 - share) ** (1 + self.config.predictor.noise_bias)) * count), count - 1)

    def _caption(self, image: TrainingImage, choice: int) -> str:
        return caption_of(image, self.config.data, self.config.name, choice)

    def _batch(
        self, targets: Sequence[tuple[TrainingImage, str]], timesteps: list[int], random: Generator, *, sampled: bool
    ) -> Batch:
        device = self._denoiser.device
        found = [self._cache.latents(image) for image, _ in targets]
        texts = [self._cache.text(caption) for _, caption in targets]
        latents = torch.stack([each.mean for each in found])
        if sampled:
            latents = latents + torch.stack([each.std for each in found]) * torch.randn(latents.shape, generator=random)
        weight = self.config.predictor.detail_weight
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return Batch(
            latents.to(device),
            torch.randn(latents.shape, generator=random).to(device),
            torch.tensor(timesteps, device=device),
            torch.stack([text.states for text in texts]).to(device),
            torch.stack(pooled).to(device) if pooled else None,
            torch.tensor([each.sizes for each in found]).to(device) if self._denoiser.is_xl else None,
            detail_weights(latents, weight).to(device) if weight else None,
        )


def _read(folder: Path, config: Config) -> tuple[Sequence[TrainingImage], int]:
    dataset = read_images(folder, image_files(folder), config.data)
    return dataset.images, len(dataset.problems)


def detail_weights(latents: Tensor, weight: float) -> Tensor:
    """Return weights [images, 1, height, width], mean 1: higher where an image differs from its median color."""
    median = latents.flatten(2).median(-1).values
    away = (latents - median[..., None, None]).norm(dim=1, keepdim=True)
    weights = 1 + weight * away / away.mean((2, 3), keepdim=True).clamp(min=1e-6)
    result: Tensor = weights / weights.mean((2, 3), keepdim=True)
    return result
