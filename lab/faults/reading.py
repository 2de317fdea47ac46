"""Change, shrink or delete files while they are read."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import hnloader
from hnloader.errors import HypernetworkError
from hnloader.formats import source as sources
from lab.faults._children import Ending
from lab.faults._subjects import hypernetwork, same
from lab.faults._trials import Count, fresh


def _shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _delete(path: Path) -> None:
    path.unlink()


def _overwrite(path: Path) -> None:
    """Overwrite the file in place with another valid file of the same size."""
    with path.open("r+b") as file:
        file.write(path.with_stem("other").read_bytes())


def _replace(path: Path) -> None:
    path.with_stem("other").replace(path)


def _make_unreadable(path: Path) -> None:
    path.chmod(0)


CHANGES: dict[str, Callable[[Path], None]] = {
    "shortened": _shorten,
    "emptied": _empty,
    "deleted": _delete,
    "overwritten": _overwrite,
    "replaced": _replace,
    "unreadable": _make_unreadable,
}


class _Disturbed:
    """An open file that calls `act` before its `number`-th read."""

    def __init__(self, file: BinaryIO, number: int, act: Callable[[], None]) -> None:
        self._file, self._left, self._act = file, number, act

    def _count(self) -> None:
        self._left -= 1
        if self._left == -1:
            self._act()

    def read(self, size: int = -1) -> bytes:
        self._count()
        return self._file.read(size)

    def readinto(self, buffer: bytearray) -> int:
        self._count()
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def __enter__(self) -> _Disturbed:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()


def changed(suffix: str, place: Path, rounds: int, seed: int) -> Count:
    """Change a file before one of the reads while it is loaded, for `rounds` of all combinations.

    The result must be the old file, the new file if it was replaced as a whole, or an error.
    """
    count = Count()
    versions = [hypernetwork(1), hypernetwork(2)]
    folder = _made(fresh(place), suffix, versions)
    readings = _readings(folder / f"style{suffix}")
    trials = [(what, number) for what in CHANGES for number in range(readings)]
    random.Random(f"{suffix} {seed}").shuffle(trials)
    for what, number in trials[:rounds]:
        folder = _made(fresh(place), suffix, versions)
        path = folder / f"style{suffix}"
        ending, wrong = _loaded(path, number, CHANGES[what], versions)
        count.add(ending, lambda: None)
        if wrong:
            count.wrong.append(f"{what} before read {number}: {wrong}")
    return count


def _made(folder: Path, suffix: str, versions: list[hnloader.Hypernetwork]) -> Path:
    for stem, version in zip(("style", "other"), versions, strict=True):
        path = folder / f"{stem}{suffix}"
        if suffix == ".legacy.pt":
            _save_legacy(version, path)
        else:
            hnloader.save(version, path)
        os.utime(path, (1_600_000_000, 1_600_000_000))  # an old time, because file systems have coarse clocks
    return folder


def _save_legacy(version: hnloader.Hypernetwork, path: Path) -> None:
    import torch

    hnloader.save(version, path)
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)


def _loaded(
    path: Path, number: int, change: Callable[[Path], None], versions: list[hnloader.Hypernetwork]
) -> tuple[Ending, str]:
    original = sources._open
    sources._open = lambda given: _Disturbed(original(given), number, lambda: change(path))  # type: ignore
    try:
        found = hnloader.load(path)
    except HypernetworkError as error:
        return Ending("error", str(error)), ""
    except Exception as error:
        return Ending("bug", repr(error)), ""
    finally:
        sources._open = original
    return Ending("done"), "" if any(same(found, version) for version in versions) else "a mixture was loaded"


def _readings(path: Path) -> int:
    """Return the number of reads while a file is loaded."""
    count = 0

    def act() -> None:
        nonlocal count
        count += 1

    class Counting(_Disturbed):
        def _count(self) -> None:
            act()

    original = sources._open
    sources._open = lambda given: Counting(original(given), 0, act)  # type: ignore
    try:
        hnloader.load(path)
    finally:
        sources._open = original
    return count
