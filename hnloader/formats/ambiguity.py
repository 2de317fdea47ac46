"""Refuse files that another program would read as another format.

The same bytes can be a sound file of one format and a program for the reader of another: a legacy stream that is also a
tar archive, a safetensors file that is also a pickle, an archive after something else. Programs that write
hypernetworks never write such files.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hnloader.errors import CorruptFileError, UnsafeFileError
from hnloader.formats import zip_archive
from hnloader.formats.source import Source
from hnloader.formats.tracing import Budget, Trace, trace_at, trace_inflated
from hnloader.formats.zip_archive import DEFLATED, STORED, Member

__all__ = [
    "Place",
    "check_one_reading",
    "check_pickle",
    "has_unknown_method",
    "has_zip_end",
    "is_tar",
    "local_headers",
    "tar_members",
    "trace_place",
]

_TAR_BLOCK = 512
_MAX_TAR_HEADERS = 10_000
# Headers of extended formats, which may move or resize the next member.
_TAR_EXTENDED = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_SPARSE})
_ZIP_TAIL = 22 + 0xFFFF


@dataclass(frozen=True)
class Place:
    """The place of a pickle: bytes `start` to `end` of the file, and the zip member that they belong to."""

    start: int
    end: int
    member: Member | None = None


def trace_place(source: Source, place: Place, budget: Budget) -> Trace:
    """Follow the pickle at a place of a file. Raises CorruptFileError if it is deflated and damaged."""
    if place.member is not None and place.member.method == DEFLATED:
        return trace_inflated(source, place.start, place.end - place.start, budget)
    return trace_at(source, place.start, budget, place.end)


def check_pickle(source: Source, place: Place) -> Trace:
    """Follow the pickle at a place. Raises UnsafeFileError if it imports or calls what no sound file does."""
    trace = trace_place(source, place, Budget())
    if trace.found:
        what = ", ".join(dict.fromkeys(f"{one.what} at byte {one.offset:,}" for one in trace.found[:3]))
        raise UnsafeFileError(
            f"{source.label} is not safe: a pickle in it holds {what}. Nothing was run. Do not open the file with "
            "other programs; get it from another source."
        )
    return trace


def check_one_reading(source: Source, *, is_stream: bool = False) -> None:
    """Refuse a file that also has a second format.

    Args:
        source: The file.
        is_stream: It is a legacy stream, whose pickles are checked when they are read.

    Raises:
        UnsafeFileError: It is also a tar archive, a zip archive after something else, or a pickle with imports.
    """
    second = None
    if is_tar(source):
        second = "a tar archive"
    elif not source.head.startswith(zip_archive.MAGIC) and has_zip_end(source):
        second = "a zip archive"
    if second is not None:
        raise UnsafeFileError(
            f"{source.label} is {second} and also a file of another format: programs would read different contents "
            "from it. Do not open the file with other programs; get it from another source."
        )
    if not is_stream:
        check_pickle(source, Place(0, source.size))


# -- tar, as torch 0.1 wrote it and torch.load still reads it


def is_tar(source: Source) -> bool:
    """Return whether the file begins with the header of a tar archive."""
    return len(source.head) >= _TAR_BLOCK and _tar_header(source.head[:_TAR_BLOCK]) is not None


def _tar_header(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError):
        return None


def tar_members(source: Source) -> Iterator[Place]:
    """Yield the places where some program may find a member. Raises CorruptFileError for too many."""
    at, exhaustive = 0, False
    for _ in range(_MAX_TAR_HEADERS):
        if at + _TAR_BLOCK > source.size:
            return
        header = _tar_header(source.read(at, _TAR_BLOCK))
        if header is None and not exhaustive:
            return
        at += _TAR_BLOCK
        if header is None:
            continue
        yield Place(at, source.size)
        exhaustive = exhaustive or header.type in _TAR_EXTENDED or header.size < 0
        if not exhaustive and header.isreg():
            at += -(-header.size // _TAR_BLOCK) * _TAR_BLOCK
    raise CorruptFileError(
        f"{source.label}: the tar archive has more than {_MAX_TAR_HEADERS:,} members. Unpack it and scan its contents."
    )


# -- zip


def has_zip_end(source: Source) -> bool:
    """Return whether a program that looks for a zip archive's end record finds a directory before it."""
    size = min(source.size, _ZIP_TAIL)
    tail = source.read(source.size - size, size)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        record = tail[at : at + 22]
        directory_size = int.from_bytes(record[12:16], "little")
        place = source.size - size + at - directory_size
        if len(record) == 22 and (
            tail[max(at - 20, 0) : at].startswith(b"PK\x06\x07")
            or (place >= 0 and source.read(place, min(4, source.size - place)) in (b"PK\x01\x02", b"PK\x05\x06"))
        ):
            return True
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return False


def has_unknown_method(source: Source) -> bool:
    """Return whether a directory may name a member of a compression method that hnloader does not unpack."""
    for at in _find_all(source, zip_archive.ENTRY_MAGIC):
        if at + 12 <= source.size and int.from_bytes(source.read(at + 10, 2), "little") in zip_archive.OTHER_METHODS:
            return True
    return False


def local_headers(source: Source) -> Iterator[Member]:
    """Yield each member that a directory could name, found by its local header.

    Each is given as stored and as deflated, because programs use the method in the directory.

    Raises:
        CorruptFileError: There are too many.
    """
    for count, at in enumerate(_find_all(source, zip_archive.MAGIC)):
        if count >= zip_archive.MAX_MEMBERS:
            raise CorruptFileError(
                f"{source.label}: the zip archive has more than {zip_archive.MAX_MEMBERS:,} members. Unpack it and "
                "scan its contents."
            )
        found = zip_archive.local_member(source, at)
        if found is not None:
            yield replace(found, method=STORED)
            yield replace(found, method=DEFLATED)


def _find_all(source: Source, magic: bytes) -> Iterator[int]:
    """Yield the offsets of a record's magic."""
    for start in range(0, source.size, 1 << 20):
        piece = source.read(start, min((1 << 20) + len(magic) - 1, source.size - start))
        at = piece.find(magic)
        while at >= 0:
            yield start + at
            at = piece.find(magic, at + 1)
