"""Report the errors and warnings of commands, and exit with documented codes."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import typer
from rich.text import Text

from hnloader.cli.streams import READER_LEFT, OutputLostError
from hnloader.cli.terminal import clean, note, stderr

__all__ = [
    "BUG",
    "DEBUG",
    "FAILED",
    "INTERRUPTED",
    "SOME_FAILED",
    "USAGE",
    "debugging",
    "exit_codes",
    "reports_errors",
]

FAILED = 1
USAGE = 2
SOME_FAILED = 3
BUG = 70
INTERRUPTED = 130

DEBUG = "HNLOADER_DEBUG"

P = ParamSpec("P")
R = TypeVar("R")


def exit_codes(meanings: Mapping[int, str] | None = None) -> str:
    """Return a sentence for the help of a command; `meanings` adds to the common exit codes or replaces them."""
    codes = {
        0: "success",
        FAILED: "a file, model or setting cannot be used",
        USAGE: "usage error",
        BUG: "bug in hnloader",
        INTERRUPTED: "interrupted",
        READER_LEFT: "broken pipe",
        **(meanings or {}),
    }
    return "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in sorted(codes.items())) + "."


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command so that every failure prints one line to stderr and exits with a documented code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _warnings_as_notes(), _shown_tracebacks():
                return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, OutputLostError):
            raise
        except BaseException as error:
            if debugging():
                _print_traceback(error)
            message, code = _explain(error)
            stderr().print(Text("Error: ", "bold red") + Text(clean(message.strip())), soft_wrap=True)
            raise typer.Exit(code) from None

    return run


def debugging() -> bool:
    """Return True if tracebacks and the warnings of other packages are shown."""
    return bool(os.environ.get(DEBUG))


def _explain(error: BaseException) -> tuple[str, int]:
    """Return a message of one line and the exit code."""
    from hnloader.errors import HypernetworkError, PromptTagError

    if isinstance(error, PromptTagError):
        return str(error), USAGE
    if isinstance(error, HypernetworkError):
        return str(error), FAILED
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted.", INTERRUPTED
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"{where}The disk is full. Incomplete files were removed.", FAILED
        return f"{where}{error.strerror or error}", FAILED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "Out of memory. Use a smaller --size, or --dtype float16.", FAILED
    return (
        f"This is a bug in hnloader: {type(error).__name__}: {error}. "
        f"Run the command again with {DEBUG}=1 and report the traceback.",
        BUG,
    )


def _print_traceback(error: BaseException | None) -> None:
    if error is not None:
        lines = "".join(traceback.format_exception(error)).splitlines()
        stderr().print(Text("\n".join(map(clean, lines))), soft_wrap=True)


class _Tracebacks(logging.Handler):
    """Prints the tracebacks of errors that the library logs because it continues with the next file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the traceback of a record that has one."""
        if record.exc_info:
            _print_traceback(record.exc_info[1])


@contextlib.contextmanager
def _shown_tracebacks() -> Iterator[None]:
    """Print the tracebacks of errors in single files, which do not end the command, when debugging."""
    if not debugging():
        yield
        return
    logger, handler = logging.getLogger("hnloader"), _Tracebacks()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Print each warning of hnloader once, as a note; show those of other packages only when debugging."""
    if debugging():
        yield
        return
    printed = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        text = str(message)
        if text not in printed:
            printed.add(text)
            note(text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"hnloader\.")
        warnings.showwarning = show
        yield
