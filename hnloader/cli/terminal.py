"""Writing to a terminal, a pipe or a file: consoles, and text that came out of files."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hnloader.texts import as_text

# Everything that moves the cursor, starts an escape sequence, or turns the direction of the text.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BLANK = re.compile(r"[\t\r\n\u2028\u2029]+")
# Lines in a pipe or a file are as long as they need to be.
_UNLIMITED = 4000
# A text from a file; paths and messages are shorter.
_LONGEST = 10_000


def stdout() -> Console:
    """Where results go."""
    return _console(stderr=False)


def stderr() -> Console:
    """Where progress, notes and errors go."""
    return _console(stderr=True)


def clean(text: object) -> str:
    """Text from a file as one line that is safe to print: no control characters, no changes of direction."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", _BLANK.sub(" ", as_text(text, _LONGEST)))


def note(text: str) -> None:
    """Tell something that is not an error."""
    stderr().print(Text("Note: ", "bold yellow") + Text(clean(text)), soft_wrap=True)


def fields(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """`label  value` lines with the values below each other, wrapped within their column."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        grid.add_row(label, value)
    return grid


Show = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Show]:
    """A bar on stderr, on terminals only; yields `show(done, total, description)`."""
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


def size_text(size: float) -> str:
    """A number of bytes: 512 B, 1.2 kB, 87.1 MB (powers of 1000, as file managers show them)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() or "COLUMNS" in os.environ else _UNLIMITED
    # Markup is off: square brackets in names are brackets, and styles come from Text.
    return Console(stderr=stderr, width=wide, markup=False, emoji=False, highlight=False)
