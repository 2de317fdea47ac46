"""Make the batches of a training run from images, captions and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from hnloader.training.cache import Cache, Latents
from hnloader.training.captions import Captioner
from hnloader.training.config import Config
from hnloader.training.dataset import TrainingImage
from hnloader.training.denoiser import Batch, Denoiser, EncodedText
from hnloader.training.sampler import Draw, generator_for, random_below, random_float

# The validation loss is measured at these shares of the timesteps.
_VALIDATION_TIMES = tuple((index + 0.5) / 8 for index in range(8))


class BatchMaker:
    """Makes batches; everything random follows from the seed and the number of the draw.

    Args:
        config: The settings.
        denoiser: The model.
        cache: Latents and text states.
        captioner: Returns the caption of an image.
        encode: Encodes captions with gradients, if the text is what is trained. Default: the cache.
    """

    def __init__(
        self,
        config: Config,
        denoiser: Denoiser,
        cache: Cache,
        captioner: Captioner,
        encode: Callable[[Sequence[str], Cache], list[EncodedText]] | None = None,
    ) -> None:
        self._config, self._denoiser, self._captioner, self._encode = config, denoiser, captioner, encode
        self.cache = cache

    def training(self, draws: Sequence[Draw], images: Sequence[TrainingImage]) -> Batch:
        """Return the batch of some draws."""
        config, data = self._config, self._config.data
        latents: list[Latents] = []
        captions: list[str] = []
        sampled: list[Tensor] = []
        noise: list[Tensor] = []
        timesteps: list[int] = []
        for draw in draws:
            random = generator_for(config.seed, "draw", draw.number)
            image = images[draw.image]
            flipped = random_float(random) < 0.5 and data.random_flip and not image.names_side
            dropped = random_float(random) < data.caption_dropout
            caption = self._captioner(image, random_below(random, 2**31))
            found = self.cache.latents(image, flipped=flipped, shift=_shift(random, data.random_shift))
            latents.append(found)
            captions.append("" if dropped and config.method != "embedding" else caption)
            sampled.append(found.mean + found.std * torch.randn(found.mean.shape, generator=random))
            offset = torch.randn((len(found.mean), 1, 1), generator=random) * config.noise_offset
            noise.append(torch.randn(found.mean.shape, generator=random) + offset)
            timesteps.append(random_below(random, len(self._denoiser.alphas_cumprod)))
        return self._batch(latents, self._texts(captions), sampled, noise, timesteps)

    def validation(self, image: TrainingImage, index: int) -> list[Batch]:
        """Return batches of one image, at fixed timesteps and with fixed noise; `index` selects the noise."""
        found = self.cache.latents(image)
        text = self._texts([self._captioner(image, 0)])
        batches = []
        for place, share in enumerate(_VALIDATION_TIMES):
            noise = torch.randn(found.mean.shape, generator=generator_for(0, "validation", index * 16 + place))
            timestep = int(share * (len(self._denoiser.alphas_cumprod) - 1))
            batches.append(self._batch([found], text, [found.mean], [noise], [timestep]))
        return batches

    def prior(self, batch: Batch, draws: Sequence[Draw]) -> Batch:
        """Return a batch with prompts to preserve in place of the captions."""
        prompts, seed = self._config.prior.prompts, self._config.seed
        texts = [
            self.cache.text(prompts[random_below(generator_for(seed, "prior", draw.number), len(prompts))])
            for draw in draws
        ]
        states, pooled = self._stacked(texts)
        return Batch(batch.latents, batch.noise, batch.timesteps, states, pooled, batch.sizes)

    def _texts(self, captions: Sequence[str]) -> list[EncodedText]:
        if self._encode is not None:
            return self._encode(captions, self.cache)
        return [self.cache.text(caption) for caption in captions]

    def _batch(
        self,
        latents: list[Latents],
        texts: list[EncodedText],
        sampled: list[Tensor],
        noise: list[Tensor],
        timesteps: list[int],
    ) -> Batch:
        device = self._denoiser.device
        masks = [found.mask if found.mask is not None else torch.ones(1, *found.mean.shape[-2:]) for found in latents]
        sizes = torch.tensor([found.sizes for found in latents])
        states, pooled = self._stacked(texts)
        return Batch(
            torch.stack(sampled).to(device),
            torch.stack(noise).to(device),
            torch.tensor(timesteps, device=device),
            states,
            pooled,
            sizes.to(device) if self._denoiser.is_xl else None,
            torch.stack(masks).to(device) if self._config.data.masks else None,
        )

    def _stacked(self, texts: list[EncodedText]) -> tuple[Tensor, Tensor | None]:
        device = self._denoiser.device
        pooled = [text.pooled for text in texts if text.pooled is not None]
        states = torch.stack([text.states for text in texts]).to(device)
        return states, torch.stack(pooled).to(device) if pooled else None


def _shift(random: Generator, limit: int) -> tuple[int, int]:
    """Return pixels to the right and down, each from -limit to limit."""
    if not limit:
        return 0, 0
    return random_below(random, 2 * limit + 1) - limit, random_below(random, 2 * limit + 1) - limit
