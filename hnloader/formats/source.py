"""An opened input: a path or a binary file object, in the form that every format reads."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from hnloader.errors import CorruptFileError, HypernetworkError
from hnloader.files import NOT_REGULAR, expanded, open_regular

__all__ = ["FileLike", "Source", "joined", "open_source", "regrouped", "unchanged"]

FileLike = str | os.PathLike[str] | BinaryIO
HEAD_SIZE = 4096
PIECE_SIZE = 1 << 20  # bytes; a multiple of every value's size


@dataclass(frozen=True)
class Source:
    """An opened input.

    Attributes:
        file: Seekable binary file.
        size: Size in bytes.
        head: The first `HEAD_SIZE` bytes.
        label: Name in messages.
        path: Path; None for a file object without a name.
        checksums: Compare what is read with the checksums that the file holds.
        descriptor: Descriptor for reads at a position, which other threads do not have to wait for. None for a file
            object, whose descriptor may belong to another file, and on systems without such reads.
    """

    file: BinaryIO
    size: int
    head: bytes
    label: str
    path: Path | None
    checksums: bool = True
    descriptor: int | None = None
    _spare: list[bytearray] = field(default_factory=list, repr=False)

    @property
    def stem(self) -> str:
        """Name of the file without its ending: the name of a hypernetwork that stores none."""
        return self.path.stem if self.path is not None else ""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes at `offset`. Raises CorruptFileError if the file ends earlier."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CorruptFileError(
                f"{self.label} is cut off: expected {size:,} bytes at {offset:,}, but the file ends at {self.size:,}. "
                "Download it again."
            )
        try:
            self.file.seek(offset)
            data = self.file.read(size)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            raise _unreadable(self.label, error) from error
        if len(data) != size:
            raise CorruptFileError(f"{self.label} became shorter while it was read. Try again.")
        return data

    def pieces(self, offset: int, size: int) -> Iterator[memoryview]:
        """Yield the same in pieces of `PIECE_SIZE`, each valid until the next one; raises what `read` raises."""
        self.read(offset + size, 0)  # the file reaches that far
        buffer = self._spare.pop() if self._spare else bytearray(PIECE_SIZE)
        for at in range(offset, offset + size, PIECE_SIZE):
            piece = memoryview(buffer)[: offset + size - at]
            try:
                done = self._read_into(piece, at)
            except (OSError, ValueError) as error:
                raise _unreadable(self.label, error) from error
            yield piece if done == len(piece) else memoryview(bytearray(self.read(at, len(piece))))
        self._spare.append(buffer)  # new memory takes long, compared with copying a tensor

    def _read_into(self, piece: memoryview, at: int) -> int | None:
        if self.descriptor is not None:
            return os.preadv(self.descriptor, [piece], at)
        self.file.seek(at)
        return self.file.readinto(piece) if hasattr(self.file, "readinto") else None


def regrouped(pieces: Iterator[memoryview], size: int = PIECE_SIZE) -> Iterator[memoryview]:
    """Yield the same bytes in pieces of `size`, the last one shorter."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        whole = len(buffer) - len(buffer) % size
        if whole:
            yield from (memoryview(buffer[at : at + size]) for at in range(0, whole, size))
            buffer = buffer[whole:]
    if buffer:
        yield memoryview(buffer)


def joined(pieces: Iterator[memoryview], size: int) -> bytearray:
    """Return all pieces in one buffer of `size` bytes, without a second copy."""
    data = bytearray(size)
    at = 0
    for piece in pieces:
        data[at : at + len(piece)] = piece
        at += len(piece)
    assert at == size == len(data)
    return data


@contextlib.contextmanager
def open_source(given: FileLike, *, checksums: bool = True) -> Iterator[Source]:
    """Open a path, or use an open binary file from its beginning and leave it open.

    Raises:
        HypernetworkError: The path cannot be opened, or the object is not a binary file.
        CorruptFileError: The file is empty.
    """
    if isinstance(given, (str, os.PathLike)):
        path = expanded(given)
        with _open(path) as file, _unchanged(path, lambda: os.fstat(file.fileno())):
            descriptor = file.fileno() if hasattr(os, "preadv") else None
            yield replace(_source(file, path), checksums=checksums, descriptor=descriptor)
    else:
        yield replace(_source(_seekable(given), _path_of(given)), checksums=checksums)


def unchanged(path: Path) -> contextlib.AbstractContextManager[None]:
    """Raise CorruptFileError at the end of the block if another program changed the file meanwhile.

    `open_source` does the same at its end; this is for callers that write before that.
    """
    return _unchanged(path, path.stat)


@contextlib.contextmanager
def _unchanged(path: Path, look: Callable[[], os.stat_result]) -> Iterator[None]:
    def stamp() -> tuple[int, int]:
        try:
            status = look()
        except OSError as error:
            raise _unreadable(str(path), error) from error
        return status.st_size, status.st_mtime_ns

    before = stamp()
    yield
    if stamp() != before:
        raise CorruptFileError(f"{path} was changed by another program while it was read. Try again.")


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except IsADirectoryError as error:
        raise HypernetworkError(f"{path} is a folder. Name a file in it.") from error
    except FileNotFoundError as error:
        raise HypernetworkError(f"{path} does not exist. Check the path.") from error
    except OSError as error:
        if error.strerror == NOT_REGULAR:
            raise HypernetworkError(f"{path} is a pipe, a socket or a device. Name a file.") from error
        raise HypernetworkError(f"{path} cannot be opened: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _unreadable(label: str, error: Exception) -> HypernetworkError:
    return HypernetworkError(f"{label} cannot be read: {_reason(error)}. Open it again and check the disk.")


def _seekable(given: object) -> BinaryIO:
    if isinstance(given, io.TextIOBase):
        raise HypernetworkError("The file is open in text mode. Open it with mode 'rb'.")
    if not callable(getattr(given, "read", None)):
        raise HypernetworkError(f"Expected a path or an open binary file, got {type(given).__name__}.")
    if getattr(given, "closed", False):
        raise HypernetworkError("The file cannot be read: it is closed. Open it again.")
    seekable = getattr(given, "seekable", None)
    if callable(seekable) and seekable():
        return given  # type: ignore[return-value]
    data = given.read()  # type: ignore[attr-defined]
    if not isinstance(data, (bytes, bytearray)):
        raise HypernetworkError(f"Expected an open binary file; this one returns {type(data).__name__}.")
    return io.BytesIO(data)


def _path_of(given: object) -> Path | None:
    name = getattr(given, "name", None)
    return Path(name) if isinstance(name, (str, os.PathLike)) else None


def _source(file: BinaryIO, path: Path | None) -> Source:
    label = str(path) if path is not None else "The file"
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(HEAD_SIZE)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise _unreadable(label, error) from error
    if not isinstance(head, bytes):
        raise HypernetworkError(f"{label} is not open in binary mode. Open it with mode 'rb'.")
    if size == 0:
        raise CorruptFileError(f"{label} is empty (0 bytes). Download it again.")
    return Source(file, size, head, label, path)
