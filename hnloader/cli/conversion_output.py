"""The output of `hnloader convert` and `hnloader export-lora`."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from hnloader.cli.terminal import clean, none_found, note, progress_bar, stderr, stdout
from hnloader.units import counted, size_text

if TYPE_CHECKING:
    from hnloader.conversion.planning import Plan
    from hnloader.conversion.results import Outcome, Result

# Number of files that have a line each.
_FEW = 20
# Number of files to name that share a reason or a note.
_NAMED = 3
# Number of notes to show; a report has them all.
_NOTES = 20
# Interval between lines of progress without a terminal.
_LINE_EVERY = 10.0  # seconds

_STYLES: dict[Outcome, str] = {
    "converted": "green",
    "up to date": "green",
    "verified": "green",
    "planned": "cyan",
    "skipped": "yellow",
    "failed": "red",
}


class Progress:
    """A bar with rate and time left; without a terminal, a line every ten seconds."""

    def __init__(self, doing: str, plan: Plan) -> None:
        self._doing = doing
        self._files = len(plan.jobs)
        self._size = max(plan.size, 1)
        self._done_files = 0
        self._done_size = 0
        self._began = self._shown = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._settled = len(plan.settled)

    def __enter__(self) -> Progress:
        self._show = self._stack.enter_context(progress_bar(self._doing))
        self._show(0, self._size, self._text())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if self._done_files > 1:
            elapsed = time.monotonic() - self._began
            rate = size_text(self._done_size / max(elapsed, 1e-3))
            stderr().print(Text(f"{self._done_files:,} files in {_duration(elapsed)}, {rate}/s", "dim"))

    def add(self, result: Result) -> None:
        """Count a file."""
        if self._settled:  # they come first, without work
            self._settled -= 1
            return
        self._done_files += 1
        self._done_size += result.size
        self._show(self._done_size, self._size, self._text())
        now = time.monotonic()
        if not stderr().is_terminal and now - self._shown >= _LINE_EVERY:
            self._shown = now
            stderr().print(Text(f"{self._text()}, {_duration(self._left())} left"))

    def _text(self) -> str:
        rate = self._done_size / max(time.monotonic() - self._began, 1e-3)
        return f"{self._doing} {self._done_files:,} of {counted(self._files, 'file')}, {size_text(rate)}/s"

    def _left(self) -> float:
        elapsed = time.monotonic() - self._began
        return elapsed * (self._size - self._done_size) / max(self._done_size, 1)


def show_results(results: Sequence[Result]) -> None:
    """Show each failed file, skipped files by reason, and a table of counts."""
    ordered = sorted(results, key=lambda result: str(result.source))
    if not ordered:
        stderr().print(none_found())
        return
    _show_good(ordered)
    _show_skipped(ordered)
    for result in ordered:
        if result.outcome == "failed":
            stdout().print(Text.assemble(("✗ ", "bold red"), _labeled(result)), soft_wrap=True)
    if len(ordered) > 1:
        stdout().print(_table(ordered))
    _show_notes(ordered)


def _show_good(results: Sequence[Result]) -> None:
    """Show all sound files if they are few, otherwise those with a reason."""
    good = [result for result in results if result.outcome not in ("skipped", "failed")]
    few = len(good) <= _FEW
    for result in good:
        if few or result.outcome == "planned" or result.reason:
            stdout().print(_line(result), soft_wrap=True)


def _line(result: Result) -> Text:
    text = Text("• " if result.outcome == "planned" else "✓ ", f"bold {_STYLES[result.outcome]}")
    text += Text(clean(result.label))
    if result.target is not None:
        text += Text(" → ", "dim") + Text(clean(result.target), "bold")
    verified = "and verified" if result.outcome == "converted" and result.details.get("verified") else ""
    about = "; ".join(filter(None, (f"{result.outcome} {verified}".strip(), clean(result.reason))))
    return text + Text(f"  {about}", "dim")


def _show_skipped(results: Sequence[Result]) -> None:
    by_reason: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.outcome == "skipped":
            by_reason[result.brief_reason].append(result)
    for reason, skipped in by_reason.items():
        names = _names(skipped)
        stdout().print(
            Text.assemble(("- ", "bold yellow"), (names, "bold"), f": skipped; {clean(reason)}"), soft_wrap=True
        )


def _show_notes(results: Sequence[Result]) -> None:
    """Show the notes of converted files, equal ones once."""
    by_text: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        notes = result.details.get("notes")
        for text in notes if isinstance(notes, list) else ():
            by_text[text].append(result)
    for text, about in list(by_text.items())[:_NOTES]:
        note(f"{_names(about)}: {text}")
    if len(by_text) > _NOTES:
        note(f"{len(by_text) - _NOTES:,} more notes like these: --report lists them all.")


def _names(results: Sequence[Result]) -> str:
    """Return the first names, and the number of others."""
    more = f" and {len(results) - _NAMED:,} more" if len(results) > _NAMED else ""
    return ", ".join(clean(result.label) for result in results[:_NAMED]) + more


def _labeled(result: Result) -> Text:
    return Text.assemble((clean(result.label), "bold"), f": {clean(result.brief_reason)}")


def _table(results: Sequence[Result]) -> Table:
    from hnloader.conversion.results import counts

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Outcome")
    table.add_column("Files", justify="right")
    table.add_column("Size", justify="right")
    for outcome, count in counts(results).items():
        size = sum(result.size for result in results if result.outcome == outcome)
        table.add_row(Text(outcome, _STYLES[outcome]), f"{count:,}", size_text(size))
    return table


def _duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
