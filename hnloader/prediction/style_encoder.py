"""Summarize examples of a style, images or texts, as a few numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

ExampleKind = Literal["image", "text"]

# Of the usual deviation. Numbers that are almost the same for all examples would be divided by almost nothing.
_LEAST_SCALE = 1e-3


class Standardized(nn.Module):
    """Takes the usual mean of each number away, and divides by its usual deviation.

    Args:
        numbers: How many numbers describe an example.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))

    def calibrate(self, values: Tensor) -> None:
        """Learn the usual values from those of examples, [examples, numbers]."""
        self.mean.copy_(values.mean(0))
        self.scale.copy_((values - self.mean).square().mean(0).sqrt().clamp(min=_LEAST_SCALE))

    def forward(self, values: Tensor) -> Tensor:
        """Return the values [examples, numbers] in these units."""
        return (values - self.mean) / self.scale


class StyleEncoder(nn.Module, ABC):
    """Summarizes examples. A style is a function of the mean of the summaries, so that their order does not matter.

    Args:
        numbers: Numbers that `pooled` returns for an example.
        style_size: Numbers of a style.
        hidden_size: Numbers of a summary.

    Attributes:
        kind: The kind of examples.
        size_name: Name of the size of its input in the file of a predictor.
    """

    kind: ClassVar[ExampleKind]
    size_name: ClassVar[str]

    def __init__(self, numbers: int, style_size: int, hidden_size: int) -> None:
        super().__init__()
        self.each = nn.Linear(numbers, hidden_size)
        self.all = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, style_size))
        self.norm = nn.LayerNorm(style_size)

    @abstractmethod
    def pooled(self, values: Tensor) -> Tensor:
        """Return [examples, numbers] for the values that the model has of each example, [examples, ...]."""

    def calibrate(self, values: Tensor) -> None:
        """Learn the usual values of examples, [examples, ...], before the training."""

    def summaries(self, values: Tensor) -> Tensor:
        """Return the summaries [examples, hidden_size] of the values of examples, [examples, ...]."""
        summary: Tensor = functional.silu(self.each(self.pooled(values)))
        return summary

    def forward(self, summaries: Tensor) -> Tensor:
        """Return the styles [styles, style_size] of summaries [styles, examples, hidden_size]."""
        style: Tensor = self.norm(self.all(summaries.mean(1)))
        return style

    def read(self, values: Tensor) -> Tensor:
        """Return the styles [styles, style_size] of the values of examples, [styles, examples, ...]."""
        style: Tensor = self(self.summaries(values.flatten(0, 1)).unflatten(0, values.shape[:2]))
        return style
