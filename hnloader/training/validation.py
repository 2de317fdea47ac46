"""The validation loss over the steps, and the remark if it does not improve."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from hnloader.training.config import Config
from hnloader.training.state import State
from hnloader.training.task import Task


class Validator:
    """Measures the loss on data that are not trained on.

    Args:
        config: The settings.
        task: The model and the data.
        applied: Applies the current weights to the model while it is active.
    """

    def __init__(self, config: Config, task: Task, applied: Callable[[], AbstractContextManager[None]]) -> None:
        self._config, self._task, self._applied = config, task, applied

    @torch.no_grad()
    def loss(self) -> float:
        """Return the mean loss; of some training data without validation data."""
        with self._applied():
            return self._task.validation_loss()

    def remark(self, state: State, best: str) -> str:
        """Return a message if the loss did not improve; "" if it did, or was not measured.

        Args:
            state: The progress.
            best: The path of the weights with the lowest loss.
        """
        first, config = state.initial_loss, self._config
        if first is None:
            return ""
        if self._task.has_validation:
            name, losses = "validation loss", validation_losses(state)
        elif state.step >= config.steps:
            name, losses = f"loss on the training {self._task.data_name}", [(self.loss(), state.step)]
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
