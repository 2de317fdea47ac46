"""Write to a terminal, a pipe or a file; make text from files safe to print."""

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

from hnloader.formats.registry import suffixes
from hnloader.texts import as_text

__all__ = [
    "Show",
    "clean",
    "fields",
    "none_found",
    "note",
    "printable",
    "progress_bar",
    "shortened",
    "stderr",
    "stdout",
]

# Characters that move the cursor, start an escape sequence, or change the direction of text.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BLANK = re.compile(r"[\t\r\n\u2028\u2029]+")
_UNLIMITED = 4000  # columns of a pipe or a file, so that lines are not wrapped
_LONGEST = 10_000  # characters of a text from a file


def stdout() -> Console:
    """Return the console for results."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return the console for progress, notes and errors."""
    return _console(stderr=True)


def clean(text: object) -> str:
    """Return a text from a file as one line without control characters and changes of direction."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", _BLANK.sub(" ", as_text(text, _LONGEST)))


def printable(text: str) -> str:
    """Return a text of several lines without control characters and changes of direction."""
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in "\n\t" else "\N{REPLACEMENT CHARACTER}", text)


def shortened(text: object, limit: int = 300) -> str:
    """Return a text from a file as one line of at most `limit` characters."""
    return clean(as_text(text, limit)).strip()


def note(text: str) -> None:
    """Print a message that is not an error."""
    stderr().print(Text("Note: ", "bold yellow") + Text(clean(text)), soft_wrap=True)


def none_found() -> Text:
    """Return the message about folders without files of any format."""
    return Text(f"Found no hypernetwork files ({', '.join(suffixes())}).", "yellow")


def fields(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """Return a table of labels and values without borders."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        grid.add_row(label, value)
    return grid


Show = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Show]:
    """Show a progress bar on stderr if it is a terminal; yield `show(done, total, description)`."""
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() or "COLUMNS" in os.environ else _UNLIMITED
    # Names may contain square brackets, so markup is off.
    return Console(stderr=stderr, width=wide, markup=False, emoji=False, highlight=False)
