"""One file of the library, as far as its contents are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hnloader.embeddings.embedding_info import EmbeddingInfo
from hnloader.inspection import FileInfo
from hnloader.library import LibraryFile

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """One file.

    Attributes:
        key: 16 hex digits. The browser names files by keys, never by paths.
        file: Path and folder.
        size: Bytes.
        modified: Time of the last change in nanoseconds.
        inode: The file system's number, which tells a replaced file from the old one.
        info: Contents. None before inspection and for a file with an error.
        problem: Error message. None before inspection and for a sound hypernetwork.
        embedding: Contents of a sound embedding. Then `problem` says why hypernetwork functions refuse it.
        notes: The user's notes, read on inspection.
    """

    key: str
    file: LibraryFile
    size: int
    modified: int
    inode: int = 0
    info: FileInfo | None = None
    problem: str | None = None
    embedding: EmbeddingInfo | None = None
    notes: str = ""

    @property
    def path(self) -> Path:
        """Full path."""
        return self.file.path

    @property
    def label(self) -> str:
        """Path below the library's folder, e.g. `sketches/ink.pt`."""
        return self.file.relative.as_posix()

    @property
    def stamp(self) -> tuple[int, int, int]:
        """Size, time and inode: the contents are unchanged as long as these are."""
        return self.size, self.modified, self.inode

    @property
    def word(self) -> str:
        """The word of an embedding in a prompt, "" for other files."""
        return "" if self.embedding is None else self.embedding.embedding.name

    @property
    def broken(self) -> bool:
        """True for a file with an error, and for files of other kinds than embeddings."""
        return self.problem is not None and self.embedding is None

    @property
    def inspected(self) -> bool:
        """True once `info` or `problem` is known."""
        return self.info is not None or self.problem is not None
