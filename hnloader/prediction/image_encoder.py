"""Summarize images as a style: a few numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.prediction.style_encoder import StyleEncoder

_CHANNELS = (48, 64, 96)


class ImageEncoder(StyleEncoder):
    """Summarizes the latents of images, [images, channels, height, width].

    The means, deviations and slopes of some convolutions over an image are its summary.
    """

    kind = "image"
    size_name = "latent_channels"

    def __init__(self, latent_channels: int, style_size: int, hidden_size: int) -> None:
        sizes = (latent_channels, *_CHANNELS)
        layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if index == 1 else 1, padding=1)
            for index, (before, after) in enumerate(itertools.pairwise(sizes))
        )
        super().__init__(4 * sum(sizes), style_size, hidden_size)
        self.layers = layers

    def pooled(self, values: Tensor) -> Tensor:
        """See `StyleEncoder`."""
        pooled = [values]
        for layer in self.layers:
            values = functional.silu(layer(values))
            pooled.append(values)
        return torch.cat([part for each in pooled for part in _statistics(each)], 1)


def _statistics(values: Tensor) -> Iterator[Tensor]:
    """Yield the means, deviations and slopes of [images, channels, height, width], [images, channels] each.

    A slope is the mean product with a coordinate of mean 0 and variance 1: it is large if the values grow across the
    image.
    """
    rows, columns = values.mean(3), values.mean(2)
    yield rows.mean(2)
    # The small number keeps the gradient of constants finite.
    yield (values.flatten(2).var(2, unbiased=False) + 1e-6).sqrt()
    for profile in (rows, columns):
        yield (profile * _coordinates(profile)).mean(2)


def _coordinates(profile: Tensor) -> Tensor:
    """Return the coordinates of the last axis."""
    centered = torch.arange(profile.shape[-1], device=profile.device) - (profile.shape[-1] - 1) / 2
    return (centered / centered.square().mean().sqrt().clamp(min=1e-6)).to(profile.dtype)
