"""Summarize texts as a style: a few numbers."""

from __future__ import annotations

from torch import Tensor

from hnloader.prediction.style_encoder import Standardized, StyleEncoder


class TextEncoder(StyleEncoder):
    """Summarizes the numbers that `TextSide` pools from the hidden states of texts, [texts, numbers].

    Much of these numbers is the same for all texts of a model, so the encoder takes their mean away.
    """

    kind = "text"
    size_name = "text_numbers"

    def __init__(self, numbers: int, style_size: int, hidden_size: int) -> None:
        super().__init__(numbers, style_size, hidden_size)
        self.usual = Standardized(numbers)

    def calibrate(self, values: Tensor) -> None:
        """See `StyleEncoder`."""
        self.usual.calibrate(values)

    def pooled(self, values: Tensor) -> Tensor:
        """See `StyleEncoder`."""
        standardized: Tensor = self.usual(values)
        return standardized
