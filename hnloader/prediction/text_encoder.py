"""Summarize texts as a style: a few numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from hnloader.prediction.style_encoder import StyleEncoder

# Of the usual deviation. Numbers that are almost the same for all texts would be divided by almost nothing.
_LEAST_SCALE = 1e-3


class TextEncoder(StyleEncoder):
    """Summarizes the numbers that `TextSide` pools from the hidden states of texts, [texts, numbers].

    Much of these numbers is the same for all texts of a model, so the encoder takes their mean away.
    """

    kind = "text"
    size_name = "text_numbers"
    mean: Tensor
    scale: Tensor

    def __init__(self, numbers: int, style_size: int, hidden_size: int) -> None:
        super().__init__(numbers, style_size, hidden_size)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))

    def calibrate(self, values: Tensor) -> None:
        """See `StyleEncoder`."""
        self.mean.copy_(values.mean(0))
        self.scale.copy_(values.std(0, unbiased=False).clamp(min=_LEAST_SCALE))

    def pooled(self, values: Tensor) -> Tensor:
        """See `StyleEncoder`."""
        return (values - self.mean) / self.scale
