"""Run a conversion of many files from the command line: progress, Ctrl-C, report and exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hnloader.cli.conversion_output import show_results
from hnloader.cli.reporting import FAILED, INTERRUPTED, SOME_FAILED, exit_codes
from hnloader.cli.terminal import note
from hnloader.units import counted

if TYPE_CHECKING:
    from hnloader.conversion.bulk import Converter, OnExisting
    from hnloader.conversion.planning import Plan
    from hnloader.conversion.results import Result

__all__ = ["EXIT_CODES", "Run", "finish", "show", "stopping_cleanly"]

EXIT_CODES = exit_codes(
    {0: "all files are converted", FAILED: "no file is converted or found", SOME_FAILED: "some files failed"}
)


@dataclass(frozen=True)
class Run:
    """A run over the files of a plan."""

    plan: Plan
    on_existing: OnExisting
    jobs: int
    verify_only: bool
    dry_run: bool

    @property
    def doing(self) -> str:
        """A word for the progress bar."""
        return "Verifying" if self.verify_only else "Looking" if self.dry_run else "Converting"

    def results(self, converter: Converter, cancel: threading.Event) -> Iterator[Result]:
        """Yield results as they come."""
        from hnloader.conversion import bulk

        if self.verify_only:
            return bulk.verify_many(self.plan, converter, jobs=self.jobs, cancel=cancel)
        run = bulk.dry_run if self.dry_run else bulk.convert_many
        return run(self.plan, converter, jobs=self.jobs, on_existing=self.on_existing, cancel=cancel)


@contextlib.contextmanager
def stopping_cleanly() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that current files are finished; a second Ctrl-C stops immediately."""
    cancel = threading.Event()

    def stop(*_: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        with contextlib.suppress(OSError):  # the terminal is closed
            os.write(2, b"\nFinishing the current files. Press Ctrl-C again to stop immediately.\n")

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield cancel
        return
    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)


def show(results: Sequence[Result], report: Path | None, *, overwrite: bool) -> None:
    """Write the report and show the results."""
    if report is not None:
        from hnloader.conversion.reports import write_report

        write_report(results, report, overwrite=overwrite)
    show_results(results)


def finish(results: Sequence[Result], plan: Plan, *, interrupted: bool) -> None:
    """Exit with the code of the results, unless it is 0."""
    if interrupted:
        begun = len(results) - len(plan.settled)
        note(f"Interrupted after {begun:,} of {counted(len(plan.jobs), 'file')}. Repeat the command to resume.")
        raise typer.Exit(INTERRUPTED)
    if code := _exit_code(results):
        raise typer.Exit(code)


def _exit_code(results: Sequence[Result]) -> int:
    """Return 0 for all, SOME_FAILED for some, FAILED for none. Other models count only if nothing else was found."""
    from hnloader.conversion.results import GOOD

    if not any(result.outcome in GOOD for result in results):
        return FAILED
    return SOME_FAILED if any(result.outcome == "failed" for result in results) else 0
