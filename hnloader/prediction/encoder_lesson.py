"""Teach an encoder what the examples of a style have in common, without the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hnloader.prediction.style_encoder import Standardized, StyleEncoder

_HIDDEN = 384
# The features of a new encoder are almost linear. Larger weights let them tell more about an example.
_GAIN = 3.0


class EncoderLesson(nn.Module):
    """Guesses the features of an example from the style of others.

    The loss through the model tells an encoder little: a few styles per step, and much noise. Here, it sees many styles
    per step. From the style of some examples and the caption of another, two layers guess what an encoder with random
    weights finds in the other. So the style must tell how captions look in it. Only training needs this.

    Args:
        features: A new encoder. It is never trained.
        style_size: Numbers of a style.
        caption_size: Numbers of a caption; 0 without captions.
    """

    def __init__(self, features: StyleEncoder, style_size: int, caption_size: int) -> None:
        super().__init__()
        self.features = features.requires_grad_(False)
        with torch.no_grad():
            for parameter in features.parameters():
                parameter.mul_(_GAIN)
        numbers = features.each.in_features
        self._usual_features, self._usual_captions = Standardized(numbers), Standardized(caption_size)
        self.guess = nn.Sequential(
            nn.Linear(style_size + caption_size, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, numbers)
        )

    def calibrate(self, values: Tensor, captions: Tensor) -> None:
        """Learn the usual values and captions of examples, [examples, ...]."""
        self.features.calibrate(values)
        self._usual_features.calibrate(self.features.pooled(values))
        self._usual_captions.calibrate(captions)

    def loss(self, styles: Tensor, captions: Tensor, values: Tensor) -> Tensor:
        """Return the mean squared error; it is about 1 if a style tells nothing.

        Args:
            styles: The style of other examples for each example, [examples, style_size].
            captions: The captions, [examples, caption_size].
            values: The values of the examples, [examples, ...].
        """
        guessed = self.guess(torch.cat((styles, self._usual_captions(captions)), 1))
        error: Tensor = (guessed - self._usual_features(self.features.pooled(values))).square().mean()
        return error
