"""Convert many files: several at once, whatever happens to one of them, resuming where an earlier run was killed.

files = hnloader.conversion.planning.plan(["old-files/"], suffix=".safetensors")
for result in convert_many(files, ToFormat(".safetensors")):
    print(result.label, result.outcome, result.reason)
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from hnloader.conversion.planning import Job, Plan, folded, numbered
from hnloader.conversion.results import Outcome, Result
from hnloader.errors import ExistingFileError, HypernetworkError, OtherModelError
from hnloader.files import remove_leftovers, same_file

__all__ = ["Converter", "OnExisting", "convert_many", "dry_run", "verify_many"]

_log = logging.getLogger(__name__)

OnExisting = Literal["skip", "overwrite", "rename"]

# Interval between looks at the cancel event.
_POLL = 0.1  # seconds


class Converter(Protocol):
    """Converts one file into another. Called from several threads at once."""

    def convert(self, source: Path, target: Path, *, overwrite: bool) -> Mapping[str, object]:
        """Write `target` completely or not at all. Returns facts for a report, as plain values.

        A converter that takes long may raise KeyboardInterrupt when its run is cancelled; the file then counts as not
        begun.

        Raises:
            ExistingFileError: A file exists or appears meanwhile, and `overwrite` is False.
            OtherModelError: The source is a sound model of another kind.
            HypernetworkError: The source or the target cannot be used.
        """

    def check_source(self, source: Path) -> None:
        """Raise the errors of `convert` that the header of the source shows. For dry runs."""

    def is_free(self, source: Path, target: Path) -> bool:
        """Return True if `convert` would replace no file."""

    def is_current(self, source: Path, target: Path) -> bool:
        """Return True if `target`, which exists, is whole and equals what `convert` would write now."""

    def came_from(self, file: Path, source: Path) -> bool:
        """Return True if `file`, which may be damaged or of another kind, states that it was made from `source`."""

    def verify(self, source: Path, target: Path) -> Mapping[str, object]:
        """Compare an existing `target` with its source. Raises HypernetworkError if they differ."""


def convert_many(
    plan: Plan,
    converter: Converter,
    *,
    jobs: int = 1,
    on_existing: OnExisting = "skip",
    cancel: threading.Event | None = None,
) -> Iterator[Result]:
    """Convert the files of a plan and yield a result for each, first for those that the plan had settled.

    A target that was made from its source before is "up to date", so a run resumes where an earlier one was killed.
    Temporary files of killed runs are removed from the folders of the targets.

    Args:
        plan: The files, see `hnloader.conversion.planning.plan`.
        converter: Converts one file.
        jobs: Number of files to convert at once; each takes memory for one file. Default: 1.
        on_existing: What to do if a target exists that was made from something else. "skip" leaves it, "overwrite"
            replaces it, "rename" writes `ink-2` beside it. "overwrite" also writes targets again that are up to date.
            Default: "skip".
        cancel: Once set, no further file is begun; current ones are finished and yielded. Default: None.

    Yields:
        Results in the order of completion. Files that were not begun have none.
    """
    remove_leftovers(job.target.parent for job in plan.jobs)
    yield from plan.settled
    worker = _Worker(plan, converter, on_existing)
    # Large files first, so that no worker ends with a long file while the others wait.
    largest_first = tuple(sorted(plan.jobs, key=lambda job: -job.size))
    yield from _run(largest_first, worker.convert, jobs, cancel)


def verify_many(
    plan: Plan, converter: Converter, *, jobs: int = 1, cancel: threading.Event | None = None
) -> Iterator[Result]:
    """Compare existing targets with their sources, without writing. Yields "verified" and "failed"."""
    yield from plan.settled
    yield from _run(plan.jobs, lambda job: _verified(job, converter), jobs, cancel)


def dry_run(
    plan: Plan,
    converter: Converter,
    *,
    jobs: int = 1,
    on_existing: OnExisting = "skip",
    cancel: threading.Event | None = None,
) -> Iterator[Result]:
    """Yield what `convert_many` would do, as far as headers show it. Yields "planned" for "converted"."""
    yield from plan.settled
    worker = _Worker(plan, converter, on_existing)
    yield from _run(plan.jobs, worker.preview, jobs, cancel)


# -- several at once


def _run(
    todo: tuple[Job, ...], work: Callable[[Job], Result], jobs: int, cancel: threading.Event | None
) -> Iterator[Result]:
    """Do the jobs in threads: most of the work is reading, hashing and writing, during which other threads run.

    Processes measured slower: each imports torch first, which takes longer than converting hundreds of megabytes.
    """
    if jobs < 1:
        raise ValueError(f"Expected at least 1 job, got {jobs}.")
    left = threading.Event()  # the consumer has left

    def cancelled() -> bool:
        return left.is_set() or (cancel is not None and cancel.is_set())

    waiting = deque(todo)
    running: set[Future[Result | None]] = set()
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="hnloader-convert")
    try:
        while running or (waiting and not cancelled()):
            # Two per thread: no thread waits, and little is begun when the run is cancelled.
            while waiting and len(running) < 2 * jobs and not cancelled():
                running.add(executor.submit(_do, work, waiting.popleft(), cancelled))
            done, running = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
            for future in done:
                if (result := future.result()) is not None:
                    yield result
    finally:
        left.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _do(work: Callable[[Job], Result], job: Job, cancelled: Callable[[], bool]) -> Result | None:
    """Do one job and catch its errors; return None if the run was cancelled before or during it."""
    if cancelled():
        return None
    began = time.perf_counter()
    try:
        result = work(job)
    except KeyboardInterrupt:  # from a converter that noticed the cancellation
        return None
    except Exception as error:
        _log.debug("%s", job.source, exc_info=True)
        result = _failed(job, error)
    return replace(result, size=job.size, seconds=round(time.perf_counter() - began, 6))


def _result(job: Job, outcome: Outcome, reason: str = "", details: Mapping[str, object] | None = None) -> Result:
    return Result(job.source, job.label, outcome, job.target, reason, details=details or {})


def _failed(job: Job, error: Exception) -> Result:
    if isinstance(error, ExistingFileError):
        return _result(job, "skipped", str(error))
    if isinstance(error, OtherModelError):
        return Result(job.source, job.label, "skipped", reason=str(error))
    return replace(_result(job, "failed", _message(job, error)), error=type(error).__name__)


def _message(job: Job, error: Exception) -> str:
    text = str(error)
    if isinstance(error, HypernetworkError):
        return text
    if isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text:
        return f"{job.label}: not enough memory. Convert fewer files at once."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or job.label}: {error.strerror}."
    return f"{job.label}: this is a bug in hnloader: {type(error).__name__}: {text}."


# -- one file


class _Worker:
    """Does single jobs of a plan, and keeps the targets of concurrent jobs apart."""

    def __init__(self, plan: Plan, converter: Converter, on_existing: OnExisting) -> None:
        self.converter, self.on_existing = converter, on_existing
        self._taken = {_key(job.target) for job in plan.jobs}
        self._lock = threading.Lock()
        self._disk_was_full = False

    def convert(self, job: Job) -> Result:
        decided = self._decide(job)
        if isinstance(decided, Result):
            return decided
        target = decided.target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HypernetworkError(
                f"{target}: cannot write the file ({error.strerror or error}). Check the folder and the disk."
            ) from error
        # Once the disk was full, skip reading a file that cannot fit.
        if self._disk_was_full and shutil.disk_usage(target.parent).free < job.size // 2:
            raise HypernetworkError(f"{target}: cannot write the file ({os.strerror(errno.ENOSPC)}). Free some space.")
        try:
            overwrite = self.on_existing == "overwrite"
            details = self.converter.convert(decided.source, target, overwrite=overwrite)
        except (OSError, HypernetworkError) as error:
            self._disk_was_full |= _disk_is_full(error)
            raise
        return _result(decided, "converted", decided.note, details)

    def preview(self, job: Job) -> Result:
        decided = self._decide(job)
        if isinstance(decided, Result):
            return decided
        self.converter.check_source(decided.source)
        return _result(decided, "planned", decided.note)

    def _decide(self, job: Job) -> Job | Result:
        """Return the job to do, or the reason to do nothing."""
        if job.sibling is not None and self.converter.came_from(job.source, job.sibling):
            return _result(job, "skipped", f"{job.label}: made from {job.sibling.name} beside it")
        if not os.path.lexists(job.target):
            if self.on_existing != "rename" or self.converter.is_free(job.source, job.target):
                return job
            return self._renamed(job, "a file that is written with it")
        same = same_file(job.source, job.target)
        if not same and self.on_existing != "overwrite" and self.converter.is_current(job.source, job.target):
            return _result(job, "up to date")
        if self.on_existing == "rename":
            return self._renamed(job, job.target.name)
        if same:
            raise HypernetworkError(f"{job.label}: the result would replace it. Write it elsewhere.")
        if os.path.isdir(job.target):  # noqa: PTH112
            raise HypernetworkError(f"{job.target}: this is a folder. Write {job.label} elsewhere.")
        if self.on_existing == "skip":
            return _result(job, "skipped", f"{job.target} exists, and was made from something else or another way")
        return job

    def _renamed(self, job: Job, existing: str) -> Job | Result:
        for target in numbered(job.target):
            with self._lock:
                free = _key(target) not in self._taken and self.converter.is_free(job.source, target)
                if free:
                    self._taken.add(_key(target))
            moved = replace(job, target=target, note=f"numbered, because {existing} exists")
            if free:
                return moved
            if os.path.lexists(target) and self.converter.is_current(job.source, target):
                return _result(moved, "up to date")
        raise AssertionError("Numbers do not end.")


def _key(target: Path) -> str:
    """Return one spelling of names that some file systems take for the same."""
    return folded(str(target))


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _verified(job: Job, converter: Converter) -> Result:
    if not os.path.lexists(job.target):
        converter.check_source(job.source)  # other models have no target
        raise HypernetworkError(f"{job.target}: missing. Convert {job.label} first.")
    return _result(job, "verified", details=converter.verify(job.source, job.target))
