"""Work in a thread that a page watches and can cancel.

A gradio handler starts a job, yields what `updates` yields as HTML, and asks for the `result` in the end. The token
of a job goes to the browser, so that the handler of the Cancel button, another request, finds it again.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from hnloader.errors import CancelledError, HypernetworkError

T = TypeVar("T")

# Of all pages of this program together; each is a thread with work that takes memory.
MOST_JOBS = 8

_running: dict[str, Job[object]] = {}
_starting = threading.Lock()


@dataclass(frozen=True)
class Update:
    """How far a job is. `partial` is what it has made so far, if it tells."""

    done: int
    total: int
    text: str
    partial: object = None


class Job(Generic[T]):
    """One call of `work(job)` in a thread of its own; `work` calls `job.report` as often as it can be stopped.

    Where `MOST_JOBS` run already it is not called, and `result` raises HypernetworkError.
    """

    def __init__(self, work: Callable[[Job[T]], T], interrupt: Callable[[], None] = lambda: None) -> None:
        self.token = secrets.token_hex(8)
        self._work = work
        self._interrupt = interrupt
        self._cancelled = threading.Event()
        self._changed = threading.Condition()
        self._update: Update | None = None
        self._finished = False
        self._result: T | None = None
        self._error: BaseException | None = None
        with _starting:
            if len(_running) >= MOST_JOBS:
                self._error = HypernetworkError(f"{len(_running)} jobs are running already. Wait until one has ended.")
                self._finished = True
                return
            _running[self.token] = self  # type: ignore[assignment]
        threading.Thread(target=self._run, name=f"hnloader-{self.token}", daemon=True).start()

    def report(self, done: int, total: int, text: str, partial: object = None) -> None:
        """Tell how far the work is. Raises CancelledError when the user has asked to stop."""
        self.check()
        with self._changed:
            self._update = Update(done, total, text, partial)
            self._changed.notify_all()

    def check(self) -> None:
        """Raise CancelledError when the user has asked to stop."""
        if self._cancelled.is_set():
            raise CancelledError

    @property
    def cancelled(self) -> bool:
        """Whether the user has asked to stop."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask the work to stop; it does at its next report."""
        if not self._finished and not self._cancelled.is_set():
            self._cancelled.set()
            self._interrupt()

    def updates(self) -> Iterator[Update]:
        """The newest update whenever there is one, until the work ends. Closing the iterator cancels the job."""
        shown = None
        try:
            while True:
                with self._changed:
                    while not self._finished and self._update is shown:
                        self._changed.wait()
                    update, finished = self._update, self._finished
                if update is not None and update is not shown:
                    shown = update
                    yield update
                if finished:
                    return
        finally:
            if not self._finished:
                self.cancel()

    def result(self) -> T:
        """What the work returned, or the exception that it raised. Call it when `updates` has ended."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            self._result = self._work(self)
        except BaseException as error:  # told to the user by whoever asks for the result
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()
            _running.pop(self.token, None)


def cancel(token: str | None) -> bool:
    """Cancel the job of a token; False where it has ended or there is none."""
    job = _running.get(token or "")
    if job is None:
        return False
    job.cancel()
    return True
