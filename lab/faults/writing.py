"""Works whose writes fail: file operations that give errors, a disk that is full, folders that nobody may write."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.faults._children import ERRNOS, count_events, fail_at, obey_permissions, run, small_disk, some
from lab.faults._subjects import Subject, leftovers
from lab.faults._trials import Count, fresh


def errors(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """Each file operation, or `rounds` drawn at random, fails once: no space, I/O error, no permission, ..."""
    numbers = random.Random(f"{subject.name} {seed}")
    count = Count()
    folder = fresh(place)
    subject.prepare(folder)
    for number in some(count_events(lambda: subject.work(folder), folder), rounds, seed):
        folder = fresh(place)
        subject.prepare(folder)
        code = numbers.choice(ERRNOS)
        _fail(count, subject, folder, lambda: fail_at(number, folder, code))
    return count


def full_disk(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """No file can become larger than a size drawn at random; afterwards there is room again."""
    numbers = random.Random(f"{subject.name} {seed}")
    count = Count()
    largest = _largest(subject, fresh(place))
    for _ in range(rounds):
        folder = fresh(place)
        subject.prepare(folder)
        size = numbers.randrange(largest)
        _fail(count, subject, folder, lambda: small_disk(size), cleared=True)
    return count


def full_tmpfs(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """As `full_disk`, on a real file system that is full; none where mounting one is not allowed."""
    numbers = random.Random(f"{subject.name} {seed}")
    count = Count()
    subject.prepare(folder := fresh(place))
    before = _size(folder)
    assert run(lambda: subject.work(folder)).how == "done"
    room = max(_size(folder) - before, 1 << 14)
    for _ in range(rounds):
        folder = fresh(place)
        with mounted(folder, "size=256m") as possible:
            if not possible:
                return count
            subject.prepare(folder)
            filler = folder / "filler"
            free = os.statvfs(folder)
            filler.write_bytes(bytes(max(free.f_bavail * free.f_bsize - numbers.randrange(room), 0)))
            count.add(run(lambda: subject.work(folder)), lambda: subject.check(folder))
            filler.unlink()
            count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))
    return count


def read_only(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """The folders may not be written: permissions, and a read-only file system where one can be mounted."""
    count = Count()
    for _ in range(max(rounds // 10, 1)):
        folder = fresh(place)
        subject.prepare(folder)
        closed = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for each in closed:
            each.chmod(stat.S_IRUSR | stat.S_IXUSR)
        ending = run(lambda: subject.work(folder), obey_permissions)
        for each in closed:
            each.chmod(stat.S_IRWXU)
        count.add(ending, lambda: subject.check(folder))
        if ending.how == "done" and subject.must_write:
            count.wrong.append("it says that it was done, where nothing can be written")
        count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))
    return count


def unreadable(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """One file of the folder may not be read; afterwards it may."""
    count = Count()
    subject.prepare(folder := fresh(place))
    for index in some(len(_files(folder)), max(rounds // 10, 1), seed):
        subject.prepare(folder := fresh(place))
        closed = _files(folder)[index]  # a name may be another one in each folder, as the index's is
        closed.chmod(0)
        ending = run(lambda: subject.work(folder), obey_permissions)
        closed.chmod(0o644)
        count.add(ending, lambda: subject.check(folder))
        count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))
    return count


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fail(count: Count, subject: Subject, folder: Path, fault: Callable[[], None], *, cleared: bool = False) -> None:
    ending = run(lambda: subject.work(folder), fault)
    count.add(ending, lambda: subject.check(folder))
    # A program that lives on removes what it could not finish, by itself.
    if cleared and leftovers(folder):
        count.wrong.append(f"temporary files were left: {[path.name for path in leftovers(folder)]}")
    count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))


def _largest(subject: Subject, folder: Path) -> int:
    subject.prepare(folder)
    assert run(lambda: subject.work(folder)).how == "done"
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A tmpfs on the folder while the block runs; yields whether that is allowed here."""
    libc = ctypes.CDLL(None, use_errno=True)
    possible = libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode()) == 0
    if not possible and ctypes.get_errno() not in (errno.EPERM, errno.EACCES, errno.ENODEV):
        raise OSError(ctypes.get_errno(), "mount")
    try:
        yield possible
    finally:
        if possible:
            libc.umount2(os.fsencode(folder), 2)
