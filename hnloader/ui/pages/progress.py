"""What the pages with long work share: errors as notices, and a job watched from a handler."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.ui import jobs, markup
from hnloader.ui.compat import make


def explained(error: BaseException) -> str:
    """What to tell the user about an error."""
    if isinstance(error, HypernetworkError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "There is not enough memory. Smaller images need less."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    # What we did not foresee: the page says that it happened, the terminal says where.
    traceback.print_exception(type(error), error, error.__traceback__)
    return f"This is a bug in hnloader: {type(error).__name__}: {error}. The terminal shows where it happened."


def complaint(error: BaseException) -> str:
    """The error as a notice; a job that the user stopped is none."""
    return markup.notice(explained(error), "info" if isinstance(error, CancelledError) else "bad")


def watched(job: jobs.Job[Any], show: Callable[[jobs.Update], tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """What `show` makes of each update of a job, until it ends."""
    for update in job.updates():
        yield show(update)


def stop(token: str | None) -> None:
    """Cancel the job of a token."""
    jobs.cancel(token)


def buttons(start: str, elem_id: str) -> tuple[Any, Any]:
    """The button that starts and the one that cancels."""
    with make("Row"):
        run = make("Button", start, variant="primary", elem_id=elem_id, scale=3)
        cancel = make("Button", "Cancel", variant="stop", elem_id=f"{elem_id}-cancel", scale=1, interactive=False)
    return run, cancel
