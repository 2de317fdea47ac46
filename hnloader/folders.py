"""Walk through folders: follow links, enter loops once, and survive errors."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

Kind = Literal["file", "folder", "special", "broken link", "unreadable folder"]


@dataclass(frozen=True)
class Entry:
    """An entry below the folder of a walk.

    Attributes:
        path: Path of the entry.
        relative: Path below the folder.
        kind: Kind of the entry or of the target of a link. "special" is a pipe, socket or device.
        reason: Error of the file system for a broken link or an unreadable folder.
    """

    path: Path
    relative: PurePath
    kind: Kind
    reason: str = ""


def walk(folder: Path, skip: Callable[[PurePath], bool] = lambda relative: False) -> Iterator[Entry]:
    """Yield everything below `folder`, except entries that `skip` returns True for and everything below them.

    Follows links, but enters each folder once. Order: breadth first, real folders before links, so that an entry has
    its shortest name; then by name. An unreadable folder follows as a second entry after its "folder".
    """
    entered = set()
    pending = deque([(folder, PurePath())])
    while pending:
        place, relative = pending.popleft()
        try:
            status = place.stat()
            # Some Windows file systems have no inode numbers; there the resolved path identifies a folder.
            identity = (status.st_dev, status.st_ino) if status.st_ino else place.resolve()
            if identity in entered:
                continue
            entered.add(identity)
            found = sorted(os.scandir(place), key=lambda entry: (entry.is_symlink(), entry.name))
        except (OSError, RuntimeError, ValueError) as error:  # deleted, not readable, a loop of links, a NUL
            yield Entry(place, relative, "unreadable folder", _reason(error))
            continue
        for entry in found:
            below = relative / entry.name
            if skip(below):
                continue
            kind, reason = _kind(entry)
            if kind == "folder":
                pending.append((place / entry.name, below))
            yield Entry(place / entry.name, below, kind, reason)


def _kind(entry: os.DirEntry[str]) -> tuple[Kind, str]:
    try:
        if entry.is_dir():
            return "folder", ""
        if entry.is_file():
            return "file", ""
        entry.stat()
    except OSError as error:  # a link to nothing, or a circle of links
        return "broken link", _reason(error)
    return "special", ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
