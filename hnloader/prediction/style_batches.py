"""Batches of styles: images to predict a hypernetwork from, and another image of the style to denoise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hnloader.prediction.style_folders import Style
from hnloader.training.cache import Cache
from hnloader.training.captions import caption_of
from hnloader.training.config import Config
from hnloader.training.dataset import TrainingImage
from hnloader.training.denoiser import Batch, Denoiser
from hnloader.training.sampler import generator_for, random_below, random_float

# The validation loss is measured at these shares of the timesteps, on two images of each style.
_VALIDATION_TIMES = tuple((index + 0.5) / 8 for index in range(8))
_VALIDATION_IMAGES, _REFERENCES = 2, 4


@dataclass(frozen=True)
class StyleBatch:
    """A batch in which each row has another style.

    Attributes:
        references: Latents of the images to predict from. [rows, images, channels, height, width].
        target: The images to denoise.
    """

    references: Tensor
    target: Batch


class StyleBatches:
    """Makes the batches; everything random follows from the seed and the step."""

    def __init__(self, config: Config, denoiser: Denoiser, cache: Cache) -> None:
        self._config, self._denoiser, self._cache = config, denoiser, cache

    def training(self, step: int, styles: Sequence[Style]) -> StyleBatch:
        """Return the batch of a step."""
        config, random = self._config, generator_for(self._config.seed, "styles", step)
        chosen = [styles[random_below(random, len(styles))] for _ in range(config.batch_size)]
        most = min(config.predictor.most_images, *(len(style.images) - 1 for style in chosen))
        count = 1 + random_below(random, most)
        references: list[Tensor] = []
        targets: list[tuple[TrainingImage, str]] = []
        for style in chosen:
            order = torch.randperm(len(style.images), generator=random).tolist()
            image = style.images[order[0]]
            dropped = random_float(random) < config.data.caption_dropout
            targets.append((image, "" if dropped else self._caption(image, random_below(random, 2**31))))
            references.append(self.references([style.images[index] for index in order[1 : count + 1]]))
        timesteps = [self._timestep(random_float(random)) for _ in chosen]
        target = self._batch(targets, timesteps, random, sampled=True)
        return StyleBatch(torch.stack(references).to(self._denoiser.device), target)

    def validation(self, styles: Sequence[Style]) -> list[StyleBatch]:
        """Return the batches of validation styles, at fixed timesteps and with fixed noise."""
        references = [self.references(style.images[:_REFERENCES][: len(style.images) - 1]) for style in styles]
        least = min(map(len, references))
        given = torch.stack([each[:least] for each in references]).to(self._denoiser.device)
        batches = []
        for place, share in enumerate(_VALIDATION_TIMES):
            timestep = int(share * (len(self._denoiser.alphas_cumprod) - 1))
            for number in range(1, _VALIDATION_IMAGES + 1):
                images = [style.images[-min(number, len(style.images) - least)] for style in styles]
                random = generator_for(0, "validation styles", place * _VALIDATION_IMAGES + number)
                targets = [(image, self._caption(image, 0)) for image in images]
                batches.append(StyleBatch(given, self._batch(targets, [timestep] * len(images), random, sampled=False)))
        return batches

    def _timestep(self, share: float) -> int:
        """Return a timestep for a random number from 0 to 1."""
        count = len(self._denoiser.alphas_cumprod)
        return min(int((1 - (1 - share) ** (1 + self._config.predictor.noise_bias)) * count), count - 1)

    def _caption(self, image: TrainingImage, choice: int) -> str:
        return caption_of(image, self._config.data, self._config.name, choice)

    def references(self, images: Sequence[TrainingImage]) -> Tensor:
        """Return the latents [images, channels, height, width] of images to predict from."""
        return torch.stack([self._cache.latents(image).mean for image in images])

    def _batch(
        self, targets: Sequence[tuple[TrainingImage, str]], timesteps: list[int], random: Generator, *, sampled: bool
    ) -> Batch:
        device = self._denoiser.device
        found = [self._cache.latents(image) for image, _ in targets]
        texts = [self._cache.text(caption) for _, caption in targets]
        latents = torch.stack([each.mean for each in found])
        if sampled:
            latents = latents + torch.stack([each.std for each in found]) * torch.randn(latents.shape, generator=random)
        weight = self._config.predictor.detail_weight
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


def detail_weights(latents: Tensor, weight: float) -> Tensor:
    """Return weights [images, 1, height, width], mean 1: higher where an image differs from its median color."""
    median = latents.flatten(2).median(-1).values
    away = (latents - median[..., None, None]).norm(dim=1, keepdim=True)
    weights = 1 + weight * away / away.mean((2, 3), keepdim=True).clamp(min=1e-6)
    result: Tensor = weights / weights.mean((2, 3), keepdim=True)
    return result
