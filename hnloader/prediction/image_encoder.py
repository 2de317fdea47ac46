"""Summarize images as a style: a few numbers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHANNELS = (48, 64, 96)


class ImageEncoder(nn.Module):
    """Summarizes the latents of images.

    The means and deviations of some convolutions over an image are its summary. A style is a function of the mean of
    the summaries, so the order of the images does not matter.
    """

    def __init__(self, latent_channels: int, style_size: int, hidden_size: int) -> None:
        super().__init__()
        sizes = (latent_channels, *_CHANNELS)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if index == 1 else 1, padding=1)
            for index, (before, after) in enumerate(itertools.pairwise(sizes))
        )
        self.each = nn.Linear(2 * sum(sizes), hidden_size)
        self.all = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, style_size))
        self.norm = nn.LayerNorm(style_size)

    def summaries(self, latents: Tensor) -> Tensor:
        """Return the summaries [images, hidden_size] of latents [images, channels, height, width]."""
        values, pooled = latents, [latents]
        for layer in self.layers:
            values = functional.silu(layer(values))
            pooled.append(values)
        parts = [part for each in pooled for part in (each.mean((2, 3)), _deviation(each))]
        summary: Tensor = functional.silu(self.each(torch.cat(parts, 1)))
        return summary

    def forward(self, summaries: Tensor) -> Tensor:
        """Return the styles [styles, style_size] of summaries [styles, images, hidden_size]."""
        style: Tensor = self.norm(self.all(summaries.mean(1)))
        return style


def _deviation(values: Tensor) -> Tensor:
    """Return the standard deviations [images, channels]; the small number keeps the gradient of constants finite."""
    variance: Tensor = values.flatten(2).var(2, unbiased=False)
    return (variance + 1e-6).sqrt()
