"""Make writes fail: errors of file operations, full disks, folders without write permission."""

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
    """Fail each file operation once, or `rounds` random ones: full disk, I/O error, no permission, ..."""
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
    """Limit files to a random size, then remove the limit."""
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
    """Use a real file system that is full; skip it if mounting is not allowed."""
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
    """Remove the write permission of the folders."""
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
            count.wrong.append("it reported success without write permission")
        count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))
    return count


def unreadable(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """Remove the read permission of one file, then restore it."""
    count = Count()
    subject.prepare(folder := fresh(place))
    for index in some(len(_files(folder)), max(rounds // 10, 1), seed):
        subject.prepare(folder := fresh(place))
        closed = _files(folder)[index]  # names may differ between folders, as of the index
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
    # A process that survives removes its own temporary files.
    if cleared and leftovers(folder):
        count.wrong.append(f"temporary files remain: {[path.name for path in leftovers(folder)]}")
    count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))


def _largest(subject: Subject, folder: Path) -> int:
    subject.prepare(folder)
    assert run(lambda: subject.work(folder)).how == "done"
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """Mount a tmpfs on the folder during the block; yield False if that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    possible = libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode()) == 0
    if not possible and ctypes.get_errno() not in (errno.EPERM, errno.EACCES, errno.ENODEV):
        raise OSError(ctypes.get_errno(), "mount")
    try:
        yield possible
    finally:
        if possible:
            libc.umount2(os.fsencode(folder), 2)
