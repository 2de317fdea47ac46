"""What a failed command says and the code it exits with."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import typer
from rich.text import Text

from hnloader.cli.streams import OutputLostError
from hnloader.cli.terminal import clean, note, stderr

FAILED = 1
USAGE = 2
SOME_FAILED = 3
BUG = 70
INTERRUPTED = 130

DEBUG = "HNLOADER_DEBUG"

P = ParamSpec("P")
R = TypeVar("R")


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make a command end every failure with one clear line on stderr and a documented exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _warnings_as_notes():
                return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, OutputLostError):
            raise
        except BaseException as error:
            if os.environ.get(DEBUG):
                traceback.print_exc()
            message, code = _explain(error)
            _print_error(message)
            raise typer.Exit(code) from None

    return run


def debugging() -> bool:
    """Whether tracebacks and the warnings of other packages are shown."""
    return bool(os.environ.get(DEBUG))


def _explain(error: BaseException) -> tuple[str, int]:
    """One line for the user, and the exit code."""
    from hnloader.errors import HypernetworkError, PromptTagError

    if isinstance(error, PromptTagError):
        return str(error), USAGE
    if isinstance(error, HypernetworkError):
        return str(error), FAILED
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted.", INTERRUPTED
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os(error), FAILED
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "There is not enough memory. A smaller --size or --dtype float16 needs less.", FAILED
    return (
        f"This is a bug in hnloader: {type(error).__name__}: {error}. "
        f"Run it again with {DEBUG}=1 and report what it shows.",
        BUG,
    )


def _explain_os(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full. Nothing incomplete was left behind."
    return f"{where}{error.strerror or error}"


def _print_error(message: str) -> None:
    stderr().print(Text("Error: ", "bold red") + Text(clean(message.strip())), soft_wrap=True)


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Show each of our own warnings once, as a note; other packages' only when debugging."""
    if debugging():
        yield
        return
    told = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        text = str(message)
        if text not in told:
            told.add(text)
            note(text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"hnloader\.")
        warnings.showwarning = show
        yield
