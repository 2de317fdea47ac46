"""The validation loss: always at the same noise and timesteps, so that only the weights change it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from hnloader.training.batches import BatchMaker
from hnloader.training.config import Config
from hnloader.training.dataset import TrainingImage
from hnloader.training.denoiser import Denoiser
from hnloader.training.state import State

# Without validation images, the loss before and after the training is that of this number of training images.
_SUBSTITUTES = 2


class Validator:
    """Measures the loss on images that are not trained on.

    Args:
        config: The settings.
        denoiser: The model.
        batches: Makes the batches.
        images: The validation images and the training images.
        applied: Applies the current weights to the model while it is active.
    """

    def __init__(
        self,
        config: Config,
        denoiser: Denoiser,
        batches: BatchMaker,
        images: tuple[Sequence[TrainingImage], Sequence[TrainingImage]],
        applied: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._config, self._denoiser, self._batches, self._applied = config, denoiser, batches, applied
        self.images, training_images = images
        self._measured = self.images or training_images[:_SUBSTITUTES]

    @torch.no_grad()
    def loss(self) -> float:
        """Return the mean loss; of two training images without validation images."""
        losses: list[float] = []
        with self._applied():
            for index, image in enumerate(self._measured):
                for batch in self._batches.validation(image, index):
                    losses.append(float(self._denoiser.losses(batch, self._config.snr_gamma).mean()))
        return sum(losses) / len(losses)

    def remark(self, state: State, best: str) -> str:
        """Return a message if the loss did not improve; "" if it did, or was not measured.

        Args:
            state: The progress.
            best: The path of the weights with the lowest loss.
        """
        first, config = state.initial_loss, self._config
        if first is None:
            return ""
        if self.images:
            name, losses = "validation loss", validation_losses(state)
        elif state.step >= config.steps:
            name, losses = "loss on the training images", [(self.loss(), state.step)]
        else:
            return ""
        if not losses:
            return ""
        lowest = min((each for each in losses if math.isfinite(each[0])), default=None)
        newest = losses[-1][0]
        rate = f"learning_rate (now {config.learning_rate_text})"
        start = f"it was {first:.4g} before the first step"
        if lowest is None or lowest[0] >= first:
            since = f"{lowest[0]:.4g} at best, at step {lowest[1]:,}" if lowest else "it is not finite now"
            return (
                f"The {name} did not improve: {start}, and {since}. "
                f"Lower {rate} or raise lr_warmup_steps, and use --restart."
            )
        if newest < first:
            return ""
        return (
            f"The {name} rose again: {start}, {lowest[0]:.4g} at step {lowest[1]:,}, and is {newest:.4g} now. "
            f"Use {best}, or lower {rate} and use --restart."
        )


def validation_losses(state: State) -> list[tuple[float, int]]:
    """Return the validation losses after the first step, with their steps."""
    history = state.history
    return [
        (each["validation_loss"], int(each["step"])) for each in history if "validation_loss" in each and each["step"]
    ]
