"""Read the members of a zip archive that has the one form that every program reads alike.

Two programs can find different contents in a zip archive: two directories, bytes before the first member, overlapping
members, two names that differ in case. `open_archive` accepts only the canonical form, which every version of
`torch.save` writes: the end record is last, the directory is directly before it, the members fill the rest without
gaps, each member's two headers agree, and all members are in one folder.

The records are those of PKWARE's APPNOTE.TXT, section 4.3.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import NoReturn

from hnloader.errors import CorruptFileError, UnknownFormatError, UnsafeFileError
from hnloader.formats.source import PIECE_SIZE, Source, regrouped
from hnloader.texts import shown

__all__ = ["Archive", "Member", "inflated", "local_member", "open_archive"]

MAGIC, ENTRY_MAGIC = b"PK\x03\x04", b"PK\x01\x02"
STORED, DEFLATED = 0, 8
# deflate64, bzip2, LZMA, Zstandard, XZ and PPMd, which hnloader does not unpack
OTHER_METHODS = frozenset({9, 12, 14, 20, 93, 95, 98})
MAX_MEMBERS = 20_000
MAX_DIRECTORY_SIZE = 8 << 20
MAX_RATIO = 100  # size of a deflated member's contents to its size in the file

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFF_FFFF
_SHOWN_NAME = 200  # bytes of a name found without a directory
_USUAL_EXTRA = 128  # bytes of extra data that are read with a local header; torch.save pads with up to 67
_ENCRYPTED, _HAS_DESCRIPTOR, _UTF_8 = 1, 8, 0x800
_NEWEST = 63  # version of the format that a program needs, times ten
_DIRECTORY = 0x10  # among the attributes of DOS
_ZIP64_SIZES, _UNICODE_PATH = 1, 0x7075  # tags of extra fields
# Absolute paths, drives, and steps upwards, of Windows as well.
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")


@dataclass(frozen=True)
class Member:
    """A member of an archive.

    Attributes:
        name: Name with the folder.
        start: Offset of the data in the file, in bytes.
        size: Size in the file, in bytes.
        unpacked: Size of the contents, in bytes.
        method: `STORED` or `DEFLATED`.
        crc: CRC-32 of the contents.
    """

    name: str
    start: int
    size: int
    unpacked: int
    method: int
    crc: int


class _DeviationError(Exception):
    """The archive departs from the canonical form, so that programs may read it differently."""


@dataclass(frozen=True)
class Archive:
    """A zip archive in canonical form.

    Attributes:
        source: The file.
        folder: The folder that holds every member, with its slash; "" if torch.save did not write the archive.
        members: The members by name, in the order of the file.
    """

    source: Source
    folder: str
    members: dict[str, Member]

    def read(self, member: Member) -> bytes:
        """Return the contents of a small member. Raises CorruptFileError if they are damaged."""
        if member.method != STORED:
            return b"".join(bytes(piece) for piece in self.pieces(member, checksum=True))
        data = self.source.read(member.start, member.size)
        self._check(member, member.size, zlib.crc32(data))
        return data

    def pieces(self, member: Member, checksum: bool) -> Iterator[memoryview]:
        """Yield the contents of a member in pieces, each valid until the next one is requested.

        Args:
            member: One of `members`.
            checksum: Compare the contents of a stored member with its CRC-32; a deflated member's always are.

        Raises:
            CorruptFileError: The contents are damaged or differ from the declared size. Raised at the end.
        """
        if member.method == STORED:
            pieces = self.source.pieces(member.start, member.size)
        else:
            pieces, checksum = regrouped(inflated(self.source, member.start, member.size)), True
        crc = size = 0
        for piece in pieces:
            size += len(piece)
            if size > member.unpacked:
                break
            if checksum:
                crc = zlib.crc32(piece, crc)
            yield piece
        self._check(member, size, crc if checksum else member.crc)

    def _check(self, member: Member, size: int, crc: int) -> None:
        if size != member.unpacked:
            relation = "more" if size > member.unpacked else "less"
            _damaged(self.source, f"the member {shown(member.name)} unpacks to {relation} than it declares")
        if crc != member.crc:
            _damaged(self.source, f"bad CRC-32 of the member {shown(member.name)}")


def inflated(source: Source, start: int, size: int, piece_size: int = PIECE_SIZE) -> Iterator[memoryview]:
    """Yield deflated data unpacked, in pieces of at most `piece_size` bytes. Raises CorruptFileError for damage."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    for at in range(start, start + size, piece_size):
        rest = source.read(at, min(piece_size, start + size - at))
        data = b""
        # After a full piece, more output may follow although all input is consumed.
        while (rest or len(data) == piece_size) and not stream.eof:
            try:
                data = stream.decompress(rest, piece_size)
            except zlib.error as error:
                _damaged(source, str(error), error)
            rest = stream.unconsumed_tail
            if data:
                yield memoryview(bytearray(data))
        if stream.eof:
            return


def open_archive(source: Source) -> Archive:
    """Read the directory of an archive and check that it has the canonical form.

    Raises:
        UnsafeFileError: The archive may hold what torch.save writes but departs from the form: programs may read it
            differently, or unpack a member outside of their folder.
        UnknownFormatError: The archive departs from the form and holds nothing that torch.save writes.
        CorruptFileError: The archive is damaged, cut off, encrypted, or above a limit.
    """
    try:
        members = _members(source)
        folders = {name.partition("/")[0] if "/" in name else "" for name in members}
        if any(name.casefold().endswith("data.pkl") for name in members):
            if len(folders) > 1 or "" in folders:
                raise _DeviationError("The members are not all in one folder.")
            _check_ratios(members.values(), source)
    except _DeviationError as error:
        if not _mentions_torch(source):
            raise UnknownFormatError(
                f"{source.label} is a zip archive that torch.save did not write. {error} If a hypernetwork is inside, "
                "unpack it first."
            ) from error
        raise UnsafeFileError(
            f"{source.label} is a zip archive in which programs would read different contents. {error} torch.save "
            "writes no such archive. Do not open the file with other programs; get it from another source."
        ) from error
    return Archive(source, f"{folders.pop()}/" if len(folders) == 1 and "" not in folders else "", members)


def _mentions_torch(source: Source) -> bool:
    """Return whether a header names the pickle of torch.save or the list of torch.package."""
    overlap = 32
    for at in range(0, source.size, PIECE_SIZE):
        piece = source.read(at, min(PIECE_SIZE + overlap, source.size - at)).lower()
        if b"data.pkl" in piece or b".data/extern_modules" in piece:
            return True
    return False


# -- the end of the archive


def _members(source: Source) -> dict[str, Member]:
    count, size, start = _directory_place(source)
    if count > MAX_MEMBERS:
        _damaged(source, f"{count:,} members, more than {MAX_MEMBERS:,}")
    if size > MAX_DIRECTORY_SIZE:
        _damaged(source, f"a list of members larger than {MAX_DIRECTORY_SIZE >> 20} MiB")
    entries = _entries(source.read(start, size), count)
    _check_names(entries, source)
    members: dict[str, Member] = {}
    end = 0
    for entry in sorted(entries, key=attrgetter("header")):
        if entry.header != end:
            raise _DeviationError(f"The member {shown(entry.name)} does not begin where the previous one ends.")
        members[entry.name], end = _member(source, entry, start)
    if end != start:
        raise _DeviationError("Other bytes follow the last member.")
    return members


def _directory_place(source: Source) -> tuple[int, int, int]:
    """Return the number of entries of the directory, its size and its offset, from the end records."""
    if source.size < _END.size or source.read(source.size - _END.size, 4) != b"PK\x05\x06":
        tail_size = min(source.size, _END.size + _MAX_16)
        if b"PK\x05\x06" in source.read(source.size - tail_size, tail_size):
            raise _DeviationError("Other bytes follow the end record.")
        _damaged(source, "the end is missing: the file is cut off")
    at = source.size - _END.size
    end = _END.unpack(source.read(at, _END.size))
    disk, first_disk, count_here, count, size, start, comment = end[1:]
    locator_at = at - _LOCATOR.size
    has_locator = locator_at >= 0 and source.read(locator_at, 4) == b"PK\x06\x07"
    if has_locator:
        at, (count_64, size_64, start_64) = _end_64(source, locator_at)
        if (count, size, start) not in _agreeing(count_64, size_64, start_64):
            raise _DeviationError("The two end records disagree.")
        count = count_here = count_64
        size, start = size_64, start_64
    elif count == _MAX_16 or _MAX_32 in (size, start):
        raise _DeviationError("The end record refers to a missing zip64 record.")
    if disk or first_disk or count != count_here or comment:
        raise _DeviationError("The end record mentions several parts or has a comment.")
    if start + size != at:
        raise _DeviationError("The directory does not end where the end record begins.")
    return count, size, start


def _end_64(source: Source, locator_at: int) -> tuple[int, tuple[int, int, int]]:
    """Return the offset of the zip64 end record, and the number of entries, size and offset of the directory."""
    at = locator_at - _END64.size
    _, disk, named, disks = _LOCATOR.unpack(source.read(locator_at, _LOCATOR.size))
    if at < 0 or named != at or disk or disks not in (0, 1):
        raise _DeviationError("The zip64 locator does not name the record before it.")
    magic, length, _, _, disk, first_disk, count_here, count, size, start = _END64.unpack(source.read(at, _END64.size))
    if magic != b"PK\x06\x06" or length != _END64.size - 12 or disk or first_disk or count != count_here:
        raise _DeviationError("The zip64 end record differs in form from torch.save's.")
    return at, (count, size, start)


def _agreeing(count: int, size: int, start: int) -> set[tuple[int, int, int]]:
    """Return what the old end record may hold beside a zip64 record with these numbers."""
    return {
        (a, b, c)
        for a in (min(count, _MAX_16), _MAX_16)
        for b in (min(size, _MAX_32), _MAX_32)
        for c in (min(start, _MAX_32), _MAX_32)
    }


# -- the directory


@dataclass(frozen=True)
class _Entry:
    """One entry of the directory."""

    raw_name: bytes
    name: str
    flags: int
    method: int
    crc: int
    size: int
    unpacked: int
    header: int


def _entries(directory: bytes, count: int) -> list[_Entry]:
    entries = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(directory):
            raise _DeviationError("The directory has fewer entries than the end record declares.")
        fields = _ENTRY.unpack_from(directory, at)
        magic, _, needed, flags, method, _, _, crc, size, unpacked, name_size, extra_size, comment_size = fields[:13]
        disk, _, attributes, header = fields[13:]
        at += _ENTRY.size
        raw_name, extra = directory[at : at + name_size], directory[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if magic != ENTRY_MAGIC or disk or needed > _NEWEST or comment_size or at > len(directory):
            raise _DeviationError("The directory holds something other than entries.")
        name = _text(raw_name, flags)
        unpacked, size, header = _wide(_extra_fields(extra, name), (unpacked, size, header), name)
        if unpacked and (attributes & _DIRECTORY or name.endswith("/")):
            raise _DeviationError(f"The member {shown(name)} is a folder with contents, which torch does not read.")
        entries.append(_Entry(raw_name, name, flags, method, crc, size, unpacked, header))
    if at != len(directory):
        raise _DeviationError("The directory has more entries than the end record declares.")
    return entries


def _text(raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _DeviationError("A member's name is not UTF-8.") from error
    if not flags & _UTF_8 and not raw.isascii():
        raise _DeviationError(f"The name of the member {shown(name)} is not marked as UTF-8.")
    return name


def _extra_fields(extra: bytes, name: str) -> dict[int, bytes]:
    """Return the extra fields of a header by their tags; refuse a second name."""
    fields: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        tag, size = struct.unpack_from("<HH", extra, at)
        if at + 4 + size > len(extra):
            break
        if tag == _UNICODE_PATH:
            raise _DeviationError(f"The member {shown(name)} has a second name.")
        if tag in fields and tag == _ZIP64_SIZES:
            raise _DeviationError(f"The member {shown(name)} states its sizes twice.")
        fields[tag] = extra[at + 4 : at + 4 + size]
        at += 4 + size
    if extra[at:].strip(b"\0"):
        raise _DeviationError(f"The member {shown(name)} has extra data of unknown form.")
    return fields


def _wide(fields: dict[int, bytes], numbers: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Return the numbers of a header; those above 32 bits come from the zip64 field."""
    field = fields.get(_ZIP64_SIZES, b"")
    wide = []
    at = 0
    for number in numbers:
        if number == _MAX_32 and at + 8 <= len(field):
            (number,) = struct.unpack_from("<Q", field, at)
            at += 8
        elif number == _MAX_32:
            raise _DeviationError(f"The member {shown(name)} lacks its size or offset.")
        wide.append(number)
    return tuple(wide)


def _check_names(entries: list[_Entry], source: Source) -> None:
    # torch looks members up without regard to case; file systems may too.
    if len({entry.name.casefold() for entry in entries}) != len(entries):
        raise _DeviationError("Two members have the same name.")
    for entry in entries:
        if "\0" in entry.name or "\\" in entry.name or not entry.name:
            raise _DeviationError(f"Programs read the name of the member {shown(entry.name)} differently.")
        if _OUTSIDE.search(entry.name):
            raise UnsafeFileError(
                f"{source.label}: the zip member {shown(entry.name)} would be unpacked outside of its folder. "
                "Get the file from another source."
            )


# -- the members


def _member(source: Source, entry: _Entry, limit: int) -> tuple[Member, int]:
    """Return a member and its end, after comparing its local header and descriptor with its entry."""
    name = shown(entry.name)
    if entry.header + _LOCAL.size > limit:
        raise _DeviationError(f"The member {name} begins after the directory.")
    header = source.read(entry.header, min(_LOCAL.size + len(entry.raw_name) + _USUAL_EXTRA, limit - entry.header))
    magic, _, flags, method, _, _, crc, size, unpacked, name_size, extra_size = _LOCAL.unpack_from(header)
    name_end = _LOCAL.size + name_size
    if name_end + extra_size > len(header):
        if entry.header + name_end + extra_size > limit:
            raise _DeviationError(f"The member {name} overlaps the directory.")
        header = source.read(entry.header, name_end + extra_size)
    if magic != MAGIC or header[_LOCAL.size : name_end] != entry.raw_name:
        raise _DeviationError(f"The two headers of the member {name} name different members.")
    extra = _extra_fields(header[name_end : name_end + extra_size], entry.name)
    if (flags & ~_HAS_DESCRIPTOR, method) != (entry.flags & ~_HAS_DESCRIPTOR, entry.method):
        raise _DeviationError(f"The two headers of the member {name} differ.")
    _check_member(source, entry)
    has_descriptor = bool(flags & _HAS_DESCRIPTOR)
    if not (has_descriptor and crc == 0 and size in (0, _MAX_32) and unpacked in (0, _MAX_32)):
        unpacked, size = _wide(extra, (unpacked, size), entry.name)
        if (crc, size, unpacked) != (entry.crc, entry.size, entry.unpacked):
            raise _DeviationError(f"The two headers of the member {name} state different sizes or checksums.")
    start = entry.header + name_end + extra_size
    end = start + entry.size
    if end > limit:
        raise _DeviationError(f"The member {name} overlaps the directory.")
    if has_descriptor:
        end += _descriptor_size(source, entry, end, limit)
    return Member(entry.name, start, entry.size, entry.unpacked, entry.method, entry.crc), end


def local_member(source: Source, at: int) -> Member | None:
    """Return the member whose local header is at `at`, up to the end of the file; None if none fits there."""
    if at + _LOCAL.size > source.size:
        return None
    _, _, _, method, _, _, crc, _, _, name_size, extra_size = _LOCAL.unpack(source.read(at, _LOCAL.size))
    start = at + _LOCAL.size + name_size + extra_size
    if start >= source.size:
        return None
    name = source.read(at + _LOCAL.size, min(name_size, _SHOWN_NAME)).decode("utf-8", "replace")
    size = source.size - start
    return Member(name, start, size, size, method, crc)


def _check_member(source: Source, entry: _Entry) -> None:
    name = shown(entry.name)
    if entry.flags & _ENCRYPTED:
        _damaged(source, f"the member {name} is encrypted")
    if entry.method not in (STORED, DEFLATED):
        raise CorruptFileError(
            f"{source.label}: the zip member {name} is compressed by method {entry.method}, which torch.save does not "
            "use. Pack the archive again without compression."
        )
    if entry.method == STORED and entry.size != entry.unpacked:
        raise _DeviationError(f"The member {name} declares two sizes.")


def _check_ratios(members: Iterable[Member], source: Source) -> None:
    for member in members:
        if member.unpacked > MAX_RATIO * max(member.size, 1):
            raise UnsafeFileError(
                f"{source.label}: the zip member {shown(member.name)} unpacks to more than {MAX_RATIO} times its size. "
                "Get the file from another source."
            )


def _descriptor_size(source: Source, entry: _Entry, at: int, limit: int) -> int:
    """Return the size of the data descriptor after a member, which repeats its checksum and sizes."""
    found = source.read(at, min(24, limit - at))
    for form in ("<4sI2I", "<4sI2Q"):
        size = struct.calcsize(form)
        numbers = (b"PK\x07\x08", entry.crc, entry.size, entry.unpacked)
        if max(numbers[2:]) > _MAX_32 and form == "<4sI2I":
            continue
        # The magic of the next record distinguishes the two forms.
        follows = source.read(at + size, 4) if at + size + 4 <= source.size else b""
        if found[:size] == struct.pack(form, *numbers) and follows in (MAGIC, ENTRY_MAGIC):
            return size
    raise _DeviationError(f"The data descriptor of the member {shown(entry.name)} contradicts the directory.")


def _damaged(source: Source, what: str, cause: Exception | None = None) -> NoReturn:
    raise CorruptFileError(f"{source.label}: the zip archive is damaged ({what}). Download the file again.") from cause
