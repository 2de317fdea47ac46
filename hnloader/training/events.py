"""The events and the result of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["BestWeights", "Event", "Result"]

Reason = Literal["done", "interrupted", "early_stopped"]


class BestWeights(NamedTuple):
    """The weights with the lowest validation loss.

    Attributes:
        loss: The validation loss.
        step: Its step.
        path: The file with the weights.
    """

    loss: float
    step: int
    path: Path


@dataclass(frozen=True)
class Event:
    """The progress of a training.

    Attributes:
        step: Finished steps.
        steps: All steps.
        loss: Running mean of the training loss.
        learning_rate: The learning rate of the step.
        validation_loss: The newest validation loss; None before the first.
        saved: The state that was just saved, if any.
        message: A message for the user, if any.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    validation_loss: float | None = None
    saved: Path | None = None
    message: str = ""


@dataclass(frozen=True)
class Result:
    """The result of a training.

    Attributes:
        output: The file.
        step: Finished steps.
        reason: Why it ended: "done", "interrupted" or "early_stopped".
        best: The weights with the lowest validation loss; None without validation.
        history: One entry per validation: step, loss, learning_rate and validation_loss. Step 0 has no loss.
        initial_loss: The validation loss before the first step; of training images if there are no validation
            images; None without validation.
    """

    output: Path
    step: int
    reason: Reason
    best: BestWeights | None
    history: list[dict[str, float]] = field(repr=False)
    initial_loss: float | None = None
