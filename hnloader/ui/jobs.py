"""Work in a thread that a page watches and can cancel.

A gradio handler starts a job, yields its `updates` as HTML, and asks for its `result` at the end. The browser keeps the
job's token, which lets another request cancel it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from hnloader.errors import CancelledError, HypernetworkError

__all__ = ["MOST_JOBS", "Job", "Update", "cancel"]

T = TypeVar("T")

# For all pages together: each job is a thread that takes memory.
MOST_JOBS = 8

_running: dict[str, Job[object]] = {}
_starting = threading.Lock()


@dataclass(frozen=True)
class Update:
    """Progress of a job. `partial` is its result so far, if it reports one."""

    done: int
    total: int
    text: str
    partial: object = None


class Job(Generic[T]):
    """One call of `work(job)` in its own thread; `work` calls `job.report` wherever it can stop.

    With `MOST_JOBS` running already, `work` is not called and `result` raises HypernetworkError.
    """

    def __init__(self, work: Callable[[Job[T]], T], interrupt: Callable[[], None] = lambda: None) -> None:
        self.token = secrets.token_hex(8)
        self._work = work
        self._interrupt = interrupt
        self._cancelled = threading.Event()
        self._changed = threading.Condition()
        self._update: Update | None = None
        self._future: Future[T] = Future()
        with _starting:
            if len(_running) >= MOST_JOBS:
                message = f"Jobs: {len(_running)} are already running. Wait until one finishes."
                self._future.set_exception(HypernetworkError(message))
                return
            _running[self.token] = self  # type: ignore[assignment]
        threading.Thread(target=self._run, name=f"hnloader-{self.token}", daemon=True).start()

    def report(self, done: int, total: int, text: str, partial: object = None) -> None:
        """Publish progress. Raises CancelledError once the user has cancelled."""
        self.check()
        with self._changed:
            self._update = Update(done, total, text, partial)
            self._changed.notify_all()

    def check(self) -> None:
        """Raise CancelledError once the user has cancelled."""
        if self._cancelled.is_set():
            raise CancelledError

    def cancel(self) -> None:
        """Ask the work to stop at its next report."""
        if not self._future.done() and not self._cancelled.is_set():
            self._cancelled.set()
            self._interrupt()

    def updates(self) -> Iterator[Update]:
        """Yield the newest update until the work ends. Closing the iterator cancels the job."""
        shown = None
        try:
            finished = False
            while not finished:
                with self._changed:
                    while not self._future.done() and self._update is shown:
                        self._changed.wait()
                    update, finished = self._update, self._future.done()
                if update is not None and update is not shown:
                    shown = update
                    yield update
        finally:
            self.cancel()

    def result(self) -> T:
        """Return the work's result or raise its exception, after `updates` has ended."""
        return self._future.result()

    def _run(self) -> None:
        try:
            self._future.set_result(self._work(self))
        except BaseException as error:  # raised by `result`
            self._future.set_exception(error)
        finally:
            with self._changed:
                self._changed.notify_all()
            _running.pop(self.token, None)


def cancel(token: str | None) -> bool:
    """Cancel the job of a token. Returns False if no such job is running."""
    job = _running.get(token or "")
    if job is None:
        return False
    job.cancel()
    return True
