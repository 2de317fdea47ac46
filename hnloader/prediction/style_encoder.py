"""Summarize examples of a style, images or texts, as a few numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

ExampleKind = Literal["image", "text"]


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
