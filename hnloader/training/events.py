"""The events and the result of a training run."""

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

    Example:
        >>> from pathlib import Path
        >>> from hnloader.training import BestWeights
        >>> loss, step, path = BestWeights(0.081, 750, Path("style.training/best.pt"))
    """

    loss: float
    step: int
    path: Path


@dataclass(frozen=True)
class Event:
    """The progress of a training run.

    Attributes:
        step: Finished steps.
        steps: All steps.
        loss: Running mean of the training loss.
        learning_rate: The learning rate of the step.
        validation_loss: The newest validation loss; None before the first.
        saved: The state that was just saved, if any.
        message: A message for the user, if any.
        seconds_left: Estimated time to the end; None before the first step.

    Example:
        >>> from hnloader.training import Event
        >>> def callback(event: Event) -> None:
        ...     print(f"{event.step} of {event.steps}: loss {event.loss:.3f}")
        >>> callback(Event(step=10, steps=100, loss=0.0914, learning_rate=1e-4))
        10 of 100: loss 0.091
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    validation_loss: float | None = None
    saved: Path | None = None
    message: str = ""
    seconds_left: float | None = None


@dataclass(frozen=True)
class Result:
    """The result of a training run.

    Attributes:
        output: The file.
        step: Finished steps.
        reason: Why it ended: "done", "interrupted" or "early_stopped".
        best: The weights with the lowest validation loss; None without validation.
        history: One entry per validation: step, loss, learning_rate and validation_loss. Step 0 has no loss.
        initial_loss: The validation loss before the first step, or the loss of some training data without validation
            data. None without validation.

    Example:
        >>> from pathlib import Path
        >>> from hnloader.training import BestWeights, Result
        >>> best = BestWeights(0.081, 750, Path("style.training/best.pt"))
        >>> result = Result(Path("style.pt"), 1500, "done", best, history=[], initial_loss=0.095)
        >>> result.best.path.name if result.best else result.output.name
        'best.pt'
    """

    output: Path
    step: int
    reason: Reason
    best: BestWeights | None
    history: list[dict[str, float]] = field(repr=False)
    initial_loss: float | None = None
