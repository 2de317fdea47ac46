"""How far a training is, in a file beside its states: what other programs (the page, `--status`) show of it."""

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

if TYPE_CHECKING:
    from hnloader.training.loop import Event, Training

NAME = "status.json"
Phase = Literal["preparing", "running", "done", "interrupted", "no longer better", "failed"]
ENDED = ("done", "interrupted", "no longer better", "failed")
# Seconds between two writes; the last is always written.
_EVERY = 1.0
_NEWEST_STEP = 0.1


@dataclass(frozen=True)
class Status:
    """What is known of a training.

    Attributes:
        phase: "preparing" while images are read and the model is loaded; else why it ended, or "running".
        step, steps: done and in all.
        loss: running mean of the training loss.
        held_out: newest loss on the images that were kept for measuring.
        best: the lowest of those, and the step of it.
        rate: learning rate.
        seconds: how long was trained, over all interruptions.
        left: seconds until the end, at the present pace.
        message: the newest thing to tell; of a failed one, why.
        pid: the process.
        history: one entry per measurement: step, loss, rate, held_out.
    """

    phase: Phase
    step: int = 0
    steps: int = 0
    loss: float | None = None
    held_out: float | None = None
    best: tuple[float, int] | None = None
    rate: float | None = None
    seconds: float = 0.0
    left: float | None = None
    message: str = ""
    pid: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def write_status(folder: Path, status: Status) -> None:
    """Write it into the training's folder; where that fails, the training is none the worse."""
    with contextlib.suppress(HypernetworkError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / NAME) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(status)), encoding="utf-8")


def read_status(folder: Path) -> Status | None:
    """What the file says; None where there is none, or it is damaged."""
    try:
        found: dict[str, Any] = json.loads(read_regular(folder / NAME))
        best = found.get("best")
        status = Status(**{**found, "best": (float(best[0]), int(best[1])) if best else None})
    except (OSError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError):
        return None
    return status if _is_sound(status) else None


def _is_sound(status: Status) -> bool:
    """Return True where every value is of its type."""
    from hnloader.training.state import is_count, is_history, is_number

    perhaps = (status.loss, status.held_out, status.rate, status.left)
    return (
        status.phase in ("preparing", "running", *ENDED)
        and all(map(is_count, (status.step, status.steps, status.pid)))
        and is_number(status.seconds)
        and all(value is None or is_number(value) for value in perhaps)
        and isinstance(status.message, str)
        and is_history(status.history)
    )


class Keeper:
    """Keeps the file of one training up to date."""

    def __init__(self, output: Path, steps: int) -> None:
        from hnloader.training.loop import folder_of

        self._folder = folder_of(output)
        self._status = Status("preparing", steps=steps, pid=os.getpid())
        self._written = self._last = time.monotonic()
        self._pace: float | None = None
        write_status(self._folder, self._status)

    @property
    def phase(self) -> Phase:
        """As it is now."""
        return self._status.phase

    def tell(self, training: Training, event: Event) -> None:
        """After a step."""
        now, state = time.monotonic(), training.state
        if event.step > self._status.step and self._status.phase == "running":
            took = (now - self._last) / (event.step - self._status.step)
            self._pace = took if self._pace is None else (1 - _NEWEST_STEP) * self._pace + _NEWEST_STEP * took
        self._last = now
        self._status = Status(
            "running",
            event.step,
            event.steps,
            state.loss,
            event.held_out,
            state.best,
            event.rate,
            state.seconds,
            None if self._pace is None else self._pace * (event.steps - event.step),
            event.message or self._status.message,
            os.getpid(),
            state.history,
        )
        if now - self._written >= _EVERY:
            self._written = now
            write_status(self._folder, self._status)

    def end(self, phase: Phase, message: str = "") -> None:
        """When it is over."""
        said = message or self._status.message
        self._status = dataclasses.replace(self._status, phase=phase, left=None, message=said)
        write_status(self._folder, self._status)


@contextlib.contextmanager
def kept(output: Path, steps: int) -> Iterator[Keeper]:
    """Keep the status of the training that the block prepares and runs; an exception is written as its failure.

    Raises:
        HypernetworkError: another training of this output is running, whose status stays as it is.
    """
    from hnloader.training.loop import alone, folder_of

    folder = folder_of(output)
    new, before = not folder.exists(), read_status(folder)
    with alone(output):
        keeper = Keeper(output, steps)
    try:
        yield keeper
    except BaseException as error:
        if new and {path.name for path in folder.glob("*")} <= {NAME, "lock"}:
            shutil.rmtree(folder, ignore_errors=True)  # it never began: a mistake leaves nothing behind
            raise
        with contextlib.suppress(HypernetworkError), alone(output):
            if before is not None and keeper.phase == "preparing":
                write_status(folder, before)  # what was there is as it was
            elif isinstance(error, KeyboardInterrupt):
                keeper.end("interrupted", "stopped before the first step")
            else:
                keeper.end("failed", str(error) or type(error).__name__)
        raise
