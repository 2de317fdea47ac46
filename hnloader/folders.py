"""Walking through folders: symbolic links followed, loops entered once, nothing that fails stops the walk."""

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
    """Something below the folder that is walked through.

    Attributes:
        path: where it is.
        relative: the same, below the folder.
        kind: "file" and "folder" also for links that lead to one; "special" is a pipe, socket or device.
        reason: what the file system says of a link or folder that leads nowhere.
    """

    path: Path
    relative: PurePath
    kind: Kind
    reason: str = ""


def walk(folder: Path, leave_out: Callable[[PurePath], bool] = lambda relative: False) -> Iterator[Entry]:
    """Everything below `folder`, but for what `leave_out` says True of, and what lies below that.

    Symbolic links are followed, each folder being entered once however often links lead to it. Breadth first
    and real folders before links, so that an entry has the shortest name that leads to it; by name within a
    folder. A folder that cannot be read is yielded as an "unreadable folder" after it was yielded as a "folder".
    """
    entered = set()
    pending = deque([(folder, PurePath())])
    while pending:
        place, relative = pending.popleft()
        try:
            status = place.stat()
            # Some Windows file systems have no inode numbers; there the resolved path tells folders apart.
            identity = (status.st_dev, status.st_ino) if status.st_ino else place.resolve()
            if identity in entered:
                continue
            entered.add(identity)
            found = sorted(os.scandir(place), key=lambda entry: (entry.is_symlink(), entry.name))
        except (OSError, RuntimeError, ValueError) as error:  # gone, not readable, a loop of links, a NUL
            yield Entry(place, relative, "unreadable folder", _reason(error))
            continue
        for entry in found:
            below = relative / entry.name
            if leave_out(below):
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
    except OSError as error:  # a link that leads nowhere, or in a circle
        return "broken link", _reason(error)
    return "special", ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
