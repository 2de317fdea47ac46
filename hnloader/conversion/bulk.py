"""Converting many files: several at once, one bad file never stopping the others, going on where a run was killed.

plan = hnloader.conversion.planning.plan(["old-files/"], suffix=".safetensors")
for result in convert_many(plan, ToFormat(".safetensors")):
    print(result.label, result.outcome, result.reason)
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from hnloader.conversion.planning import Job, Plan, folded, numbered
from hnloader.conversion.results import Outcome, Result
from hnloader.errors import ExistingFileError, HypernetworkError, OtherModelError
from hnloader.files import remove_leftovers, same_file

OnExisting = Literal["skip", "overwrite", "rename"]

# How often a run looks whether it is cancelled while it waits for its workers.
_POLL = 0.1  # seconds


class Converter(Protocol):
    """What turns one file into another. Called from several threads at once."""

    @property
    def suffix(self) -> str:
        """How targets end: ".safetensors", "-lora.safetensors"."""

    def convert(self, source: Path, target: Path) -> Mapping[str, object]:
        """Write `target`, all at once or not at all, replacing what is there; tell about it in plain values.

        Raises HypernetworkError (OtherModelError for a sound model that is no hypernetwork). One that takes long
        may raise KeyboardInterrupt when it finds its run cancelled; the file then counts as not begun.
        """

    def look(self, source: Path) -> None:
        """Raise what `convert` would, as far as the header shows it. For dry runs."""

    def made(self, source: Path, target: Path) -> bool:
        """Whether `target`, which exists, is whole and what `convert` would write from `source` as it is now."""

    def came_from(self, file: Path, source: Path) -> bool:
        """Whether `file`, which may be damaged or of another kind, states that it was made from `source`."""

    def check(self, source: Path, target: Path) -> Mapping[str, object]:
        """Compare an existing `target` with its source; raises HypernetworkError where they differ."""


@runtime_checkable
class Careful(Protocol):
    """A `Converter` that can be told to replace nothing, and may write a second file beside its target."""

    def keeping(self) -> Converter:
        """Return one that raises ExistingFileError rather than replace a file, also one that appears meanwhile."""

    def is_free(self, source: Path, target: Path) -> bool:
        """Return whether nothing stands where the result of `source` would be written."""


def convert_many(
    plan: Plan,
    converter: Converter,
    *,
    jobs: int = 1,
    on_existing: OnExisting = "skip",
    cancel: threading.Event | None = None,
) -> Iterator[Result]:
    """Convert the files of a plan, and yield a result for each, first for those that the plan had settled.

    A target that was made from its source before is "up to date", so that a run that was killed goes on where it
    stopped. Temporary files of killed runs are removed from the folders of the targets. Sources are never
    written to, and a target appears under its name when it is whole.

    Args:
        plan: which files, see `hnloader.conversion.planning.plan`.
        converter: what turns one file into another.
        jobs: files converted at once; each takes memory for one file.
        on_existing: What happens where a target exists that was not made from its source, or another file that is
            written with it: "skip" leaves them and the source alone, "overwrite" replaces them, "rename" writes
            `ink-2` beside them. With "overwrite", targets that are up to date are written again as well.
        cancel: once it is set, no further file is begun; those that are under way are finished and yielded.

    Yields:
        Results in the order in which they are done, large files first. Files that were not begun have none.
    """
    remove_leftovers(job.target.parent for job in plan.jobs)
    yield from plan.settled
    worker = _Worker(plan, converter, on_existing)
    # The largest first, so that at the end no worker has a long file left while the others have none.
    largest_first = tuple(sorted(plan.jobs, key=lambda job: -job.size))
    yield from _run(largest_first, worker.convert, jobs, cancel)


def check_many(
    plan: Plan, converter: Converter, *, jobs: int = 1, cancel: threading.Event | None = None
) -> Iterator[Result]:
    """Compare the existing targets of a plan with their sources; yields as `convert_many` does, "verified" or "failed".

    Nothing is written.
    """
    yield from plan.settled
    yield from _run(plan.jobs, lambda job: _checked(job, converter), jobs, cancel)


def dry_run(
    plan: Plan,
    converter: Converter,
    *,
    jobs: int = 1,
    on_existing: OnExisting = "skip",
    cancel: threading.Event | None = None,
) -> Iterator[Result]:
    """Tell what `convert_many` would do, as far as headers show it; "planned" stands for "converted".

    Nothing is written.
    """
    yield from plan.settled
    worker = _Worker(plan, converter, on_existing)
    yield from _run(plan.jobs, worker.look, jobs, cancel)


# -- several at once


def _run(
    todo: tuple[Job, ...], work: Callable[[Job], Result], jobs: int, cancel: threading.Event | None
) -> Iterator[Result]:
    """Do the jobs in threads: most of the work is reading, hashing and writing, during which other threads run.

    Processes were measured to be slower: each has to import torch first, which takes longer than converting
    hundreds of megabytes.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; at least 1 is needed")
    left = threading.Event()  # the consumer has left

    def cancelled() -> bool:
        return left.is_set() or (cancel is not None and cancel.is_set())

    waiting = deque(todo)
    running: set[Future[Result | None]] = set()
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="hnloader-convert")
    try:
        while running or (waiting and not cancelled()):
            # Two for each thread: none waits for work, and little is begun when the run is cancelled.
            while waiting and len(running) < 2 * jobs and not cancelled():
                running.add(executor.submit(_settle, work, waiting.popleft(), cancelled))
            done, running = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
            for future in done:
                if (result := future.result()) is not None:
                    yield result
    finally:
        left.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _settle(work: Callable[[Job], Result], job: Job, cancelled: Callable[[], bool]) -> Result | None:
    """One job with whatever may happen in it; None when the run was cancelled before or in the midst of it."""
    if cancelled():
        return None
    began = time.perf_counter()
    try:
        result = work(job)
    except KeyboardInterrupt:  # a converter that noticed by itself that the run is cancelled
        return None
    except Exception as error:  # one bad file never stops the others
        result = _failed(job, error)
    return replace(result, size=job.size, seconds=round(time.perf_counter() - began, 6))


def _result(job: Job, outcome: Outcome, reason: str = "", details: Mapping[str, object] | None = None) -> Result:
    return Result(job.source, job.label, outcome, job.target, reason, details=details or {})


def _failed(job: Job, error: Exception) -> Result:
    if isinstance(error, ExistingFileError):
        return _result(job, "skipped", str(error))
    if isinstance(error, OtherModelError):
        return Result(job.source, job.label, "skipped", reason=str(error))
    failed = _result(job, "failed", _explained(job, error))
    return replace(failed, error=type(error).__name__)


def _explained(job: Job, error: Exception) -> str:
    text = str(error)
    if isinstance(error, HypernetworkError):
        return text
    if isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text:
        return f"{job.label}: there is not enough memory for it; convert fewer files at once"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or job.label}: {error.strerror}"
    return f"{job.label}: this is a bug in hnloader: {type(error).__name__}: {text}"


# -- one file


class _Worker:
    """Does single jobs of a plan, and keeps the targets of those that run at once apart."""

    def __init__(self, plan: Plan, converter: Converter, on_existing: OnExisting) -> None:
        self.converter = converter
        if on_existing != "overwrite" and isinstance(converter, Careful):
            self.converter = converter.keeping()
        self.on_existing = on_existing
        self._taken = {_key(job.target) for job in plan.jobs}
        self._lock = threading.Lock()
        self._disk_was_full = False

    def convert(self, job: Job) -> Result:
        decided = self._decide(job)
        if isinstance(decided, Result):
            return decided
        _make_folder(decided.target)
        self._check_space(decided)
        try:
            details = self.converter.convert(decided.source, decided.target)
        except (OSError, HypernetworkError) as error:
            self._disk_was_full |= _disk_is_full(error)
            raise
        return _result(decided, "converted", decided.note, details)

    def look(self, job: Job) -> Result:
        decided = self._decide(job)
        if isinstance(decided, Result):
            return decided
        self.converter.look(decided.source)
        return _result(decided, "planned", decided.note)

    def _decide(self, job: Job) -> Job | Result:
        """The job as it is to be done, or why there is nothing to do."""
        if job.sibling is not None and self.converter.came_from(job.source, job.sibling):
            return _result(job, "skipped", f"{job.label} was made from {job.sibling.name} beside it")
        if not os.path.lexists(job.target):
            rename = self.on_existing == "rename" and not self._is_free(job, job.target)
            return self._renamed(job, "a file that is written with it") if rename else job
        its_own = same_file(job.source, job.target)
        if not its_own and self.on_existing != "overwrite" and self.converter.made(job.source, job.target):
            return _result(job, "up to date")
        if self.on_existing == "rename":
            return self._renamed(job, job.target.name)
        if its_own:
            raise HypernetworkError(f"{job.label} would be replaced by its own result; write it elsewhere")
        if os.path.isdir(job.target):  # noqa: PTH112
            raise HypernetworkError(f"{job.target} is a folder; write {job.label} elsewhere")
        if self.on_existing == "skip":
            return _result(job, "skipped", f"{job.target} is there already, and was not made from this file like this")
        return job

    def _is_free(self, job: Job, target: Path) -> bool:
        if isinstance(self.converter, Careful):
            return self.converter.is_free(job.source, target)
        return not os.path.lexists(target)

    def _renamed(self, job: Job, existing: str) -> Job | Result:
        for target in numbered(job.target):
            with self._lock:
                free = _key(target) not in self._taken and self._is_free(job, target)
                if free:
                    self._taken.add(_key(target))
            moved = replace(job, target=target, note=f"numbered, because {existing} is there already")
            if free:
                return moved
            if os.path.lexists(target) and self.converter.made(job.source, target):
                return _result(moved, "up to date")
        raise AssertionError("numbers do not end")

    def _check_space(self, job: Job) -> None:
        """Once the disk was full, a file that cannot fit is not read only to fail at its end."""
        if self._disk_was_full and shutil.disk_usage(job.target.parent).free < job.size // 2:
            raise HypernetworkError(f"cannot write {job.target}: {os.strerror(errno.ENOSPC)}")


def _key(target: Path) -> str:
    """One spelling for what some file systems take for the same name."""
    return folded(str(target))


def _make_folder(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HypernetworkError(f"cannot write {target}: {error.strerror or error}") from error


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _checked(job: Job, converter: Converter) -> Result:
    if not os.path.lexists(job.target):
        converter.look(job.source)  # what is no hypernetwork lacks nothing
        raise HypernetworkError(f"{job.target} is missing: {job.label} was not converted")
    return _result(job, "verified", details=converter.check(job.source, job.target))
