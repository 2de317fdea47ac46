"""The progress of a training run in a file, for the page and `hnloader train --status`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hnloader.errors import HypernetworkError
from hnloader.files import read_regular, replacing
from hnloader.training.events import Event
from hnloader.training.json_values import problem_of
from hnloader.training.run_folder import locked, run_folder

if TYPE_CHECKING:
    from hnloader.training.state import State

STATUS_NAME = "status.json"
Phase = Literal["preparing", "running", "done", "interrupted", "early_stopped", "failed"]
ENDED = ("done", "interrupted", "early_stopped", "failed")
# Seconds between two writes; the end is always written.
_INTERVAL = 1.0


@dataclass(frozen=True)
class Status:
    """The progress of a training run.

    Attributes:
        phase: "preparing" (reading the data, loading the model), "running", or how it ended.
        step: Finished steps.
        steps: All steps.
        loss: Running mean of the training loss.
        validation_loss: The newest validation loss.
        best: The lowest validation loss and its step.
        learning_rate: The learning rate of the step.
        seconds: Training time over all runs.
        seconds_left: Estimated time to the end.
        message: The newest message; of a failed training run, the error.
        pid: The process.
        history: One entry per validation: step, loss, learning_rate, validation_loss.
    """

    phase: Phase
    step: int = 0
    steps: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    best: tuple[float, int] | None = None
    learning_rate: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    message: str = ""
    pid: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def write_status(folder: Path, status: Status) -> None:
    """Write the file; a failure is ignored."""
    with contextlib.suppress(HypernetworkError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / STATUS_NAME) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(status)), encoding="utf-8")


def read_status(folder: Path) -> Status | None:
    """Return the content of the file; None if it is missing or damaged."""
    try:
        found: Any = json.loads(read_regular(folder / STATUS_NAME))
        if problem_of(Status, found) or not all("step" in entry for entry in found["history"]):
            return None
        best = found["best"]
        return Status(**{**found, "best": (float(best[0]), best[1]) if best else None})
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


class StatusWriter:
    """Keeps the status file of one training run up to date."""

    def __init__(self, output: Path, steps: int) -> None:
        self._folder = run_folder(output)
        self._status = Status("preparing", steps=steps, pid=os.getpid())
        self._written = time.monotonic()
        write_status(self._folder, self._status)

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._status.phase

    def update(self, state: State, event: Event) -> None:
        """Take over an event and the state of the training."""
        now = time.monotonic()
        self._status = Status(
            phase="running",
            step=event.step,
            steps=event.steps,
            loss=state.loss,
            validation_loss=event.validation_loss,
            best=state.best,
            learning_rate=event.learning_rate,
            seconds=state.seconds,
            seconds_left=event.seconds_left,
            message=event.message or self._status.message,
            pid=os.getpid(),
            history=state.history,
        )
        if now - self._written >= _INTERVAL:
            self._written = now
            write_status(self._folder, self._status)

    def end(self, phase: Phase, message: str = "") -> None:
        """Write how the training ended."""
        message = message or self._status.message
        self._status = dataclasses.replace(self._status, phase=phase, seconds_left=None, message=message)
        write_status(self._folder, self._status)


@contextlib.contextmanager
def status_file(output: Path, steps: int) -> Iterator[StatusWriter]:
    """Keep the status of the training in this block; an exception is written as its failure.

    Raises:
        HypernetworkError: Another training run is writing this output. Its status does not change.
    """
    folder = run_folder(output)
    new, before = not folder.exists(), read_status(folder)
    with locked(output):
        writer = StatusWriter(output, steps)
    try:
        yield writer
    except BaseException as error:
        if new and {path.name for path in folder.glob("*")} <= {STATUS_NAME, "lock"}:
            shutil.rmtree(folder, ignore_errors=True)  # the training did not start
            raise
        with contextlib.suppress(HypernetworkError), locked(output):
            if before is not None and writer.phase == "preparing":
                write_status(folder, before)
            elif isinstance(error, KeyboardInterrupt):
                writer.end("interrupted", "Stopped before the first step.")
            else:
                writer.end("failed", str(error) or type(error).__name__)
        raise
