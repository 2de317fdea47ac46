"""Summarize images as a style: a few numbers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.prediction.style_encoder import StyleEncoder

_CHANNELS = (48, 64, 96)


class ImageEncoder(StyleEncoder):
    """Summarizes the latents of images, [images, channels, height, width].

    The means and deviations of some convolutions over an image are its summary.
    """

    kind = "image"
    size_name = "latent_channels"

    def __init__(self, latent_channels: int, style_size: int, hidden_size: int) -> None:
        sizes = (latent_channels, *_CHANNELS)
        layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if index == 1 else 1, padding=1)
            for index, (before, after) in enumerate(itertools.pairwise(sizes))
        )
        super().__init__(2 * sum(sizes), style_size, hidden_size)
        self.layers = layers

    def pooled(self, values: Tensor) -> Tensor:
        """See `StyleEncoder`."""
        pooled = [values]
        for layer in self.layers:
            values = functional.silu(layer(values))
            pooled.append(values)
        return torch.cat([part for each in pooled for part in (each.mean((2, 3)), _deviation(each))], 1)


def _deviation(values: Tensor) -> Tensor:
    """Return the standard deviations [images, channels]; the small number keeps the gradient of constants finite."""
    variance: Tensor = values.flatten(2).var(2, unbiased=False)
    return (variance + 1e-6).sqrt()
