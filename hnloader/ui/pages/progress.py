"""Shared by pages with long jobs: errors as notices, Start and Cancel buttons, and a job's updates."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.ui import jobs, markup
from hnloader.ui.compat import listen, make, update

__all__ = ["complaint", "ended", "explained", "run_and_cancel", "stop_with", "updates"]


def explained(error: BaseException) -> str:
    """Explain an error to the user."""
    if isinstance(error, HypernetworkError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "Out of memory. Use smaller images."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    # Unforeseen: the page reports it, the terminal shows where.
    traceback.print_exception(type(error), error, error.__traceback__)
    return f"This is a bug in hnloader: {type(error).__name__}: {error}. The terminal shows the traceback."


def complaint(error: BaseException, shortened: Callable[[str], str] = str) -> str:
    """Show an error as a notice, or a cancelled job as information; `shortened` changes its text."""
    return markup.notice(shortened(explained(error)), "info" if isinstance(error, CancelledError) else "bad")


def run_and_cancel(label: str, elem_id: str) -> tuple[Any, Any]:
    """Make the buttons that start and cancel a job."""
    with make("Row"):
        run = make("Button", label, variant="primary", elem_id=elem_id, scale=3, min_width=140)
        stop = {"variant": "stop", "elem_id": f"{elem_id}-cancel", "interactive": False}
        cancel = make("Button", "Cancel", scale=1, min_width=90, **stop)
    return run, cancel


def stop_with(cancel: Any, token: Any) -> None:
    """Let a button cancel the job of a token, without waiting in the queue."""
    listen(cancel.click, lambda token: jobs.cancel(token) and None, [token], [], queue=False)


def updates(
    job: jobs.Job[Any], waiting: str, show: Callable[[jobs.Update | None], tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    """Yield a running job's outputs: token, progress, both buttons, and what `show` makes of each update.

    `show` gets None before the first update.
    """
    busy = update(interactive=False), update(interactive=True)
    yield job.token, markup.progress(0, 1, waiting), *busy, *show(None)
    for news in job.updates():
        yield job.token, markup.progress(news.done, news.total, news.text), *busy, *show(news)


def ended(status: str, *outputs: Any) -> tuple[Any, ...]:
    """Return the outputs of a page without a running job."""
    return None, status, update(interactive=True), update(interactive=False), *outputs
