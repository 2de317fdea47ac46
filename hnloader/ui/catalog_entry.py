"""One file of the library, as far as its contents are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hnloader.inspection import FileInfo
from hnloader.library import LibraryFile

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """One file, as far as it is known.

    Attributes:
        key: 16 hex digits that stand for the path in the page, which never names paths to the server.
        file: where it lies.
        size: bytes.
        modified: time of the last change, in nanoseconds.
        inode: number by which the file system knows the file; another one for a file that took its place.
        info: what it holds; None before it was looked into, and for a bad file.
        problem: what is wrong with it; None before it was looked into, and for a sound file.
        notes: the user's, once it was looked into.
    """

    key: str
    file: LibraryFile
    size: int
    modified: int
    inode: int = 0
    info: FileInfo | None = None
    problem: str | None = None
    notes: str = ""

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.file.path

    @property
    def label(self) -> str:
        """The path below the library's folder, e.g. `sketches/ink.pt`."""
        return self.file.relative.as_posix()

    @property
    def looked_into(self) -> bool:
        """Whether `info` or `problem` is known."""
        return self.info is not None or self.problem is not None
