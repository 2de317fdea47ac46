"""Reads what `torch.save` wrote, zip or legacy stream, without running anything in it.

`read_checkpoint` gives the object tree with a `TensorRef` in the place of each tensor: no tensor data is read.
`Checkpoint.read` then gives the tensors one by one. Every declared size is held against the file's own size
before anything of that size is made. docs/format.md states the limits.

torch.load is not used. Its `weights_only` accepts other opcodes and globals in each release (2.0 knows no
protocol 3 or newer, 2.4 and newer may be widened by the program around it) and had a hole before 2.6
(CVE-2025-32434); the tests hold this reader against it on the same bytes.
"""

from __future__ import annotations

import functools
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from hnloader.errors import (
    CorruptFileError,
    HypernetworkError,
    UnknownFormatError,
    UnsafeFileError,
    UnsupportedArchitectureError,
)
from hnloader.formats.pickles import (
    MAX_PICKLE_SIZE,
    PLAIN,
    MalformedPickleError,
    Pickle,
    Refusal,
    StorageRef,
    TensorRef,
    read_pickle,
)
from hnloader.formats.refusals import check_refusals, is_inert
from hnloader.formats.source import PIECE_SIZE, FileLike, Source, joined, open_source
from hnloader.formats.trees import mapped

MAX_MEMBERS = 20_000
MAX_DIRECTORY_SIZE = 8 << 20
MAX_RATIO = 100
# Tensors that share a storage are copied apart when they are cast: together at most this many times the file.
# So are storages in compressed zip members.
MAX_SHARING = 8
MAX_TENSOR_VALUES = 1 << 48
# The pickles of a legacy stream lie at its beginning, and are far smaller than the first of these.
_LEGACY_WINDOWS = (1 << 16, 2 * MAX_PICKLE_SIZE)

ZIP_MAGIC = b"PK\x03\x04"
# The pickle of the number 0x1950a86a20f9469cfc6c, with which legacy streams begin.
LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass
class Checkpoint:
    """The contents of a file that `torch.save` wrote.

    Attributes:
        tree: the saved object; tensors are `TensorRef`, what is not allowed is `Opaque`.
        container: "zip" or "legacy".
        refused: what the pickle names that is not on the allow-list; empty for a safe file.
    """

    tree: object
    container: Literal["zip", "legacy"]
    refused: list[Refusal]
    label: str
    _read_storage: Callable[[StorageRef], Iterator[memoryview]] = field(repr=False)
    _storages: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def read(self, ref: TensorRef) -> Tensor:
        """The tensor that `ref` describes, in the stored dtype, on the CPU; tensors may share memory as saved.

        Raises:
            CorruptFileError: sizes contradict each other or the file is damaged.
        """
        storage = ref.storage
        if storage.key not in self._storages:
            dtype: torch.dtype = getattr(torch, storage.dtype)
            data = joined(self._read_storage(storage), storage.count * item_size(storage.dtype))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._storages[storage.key] = flat
        return self._storages[storage.key].as_strided(ref.shape, ref.stride, ref.offset)

    def stream(self, ref: TensorRef) -> Iterator[memoryview] | None:
        """The bytes of a tensor in pieces, for who needs no more than one at a time; None where it must be read whole.

        Raises:
            CorruptFileError: the file is damaged.
        """
        strides = [math.prod(ref.shape[axis + 1 :]) for axis in range(len(ref.shape))]
        whole = ref.offset == 0 and ref.count == ref.storage.count and list(ref.stride) == strides
        return self._read_storage(ref.storage) if whole else None

    def forget(self) -> None:
        """Drop the storages that were read; they are kept because tensors may share them."""
        self._storages.clear()


def read_checkpoint(source: Source) -> Checkpoint:
    """What the file holds, without its tensor data.

    The sizes of a file whose pickle holds something unsafe are not checked: that is said first.

    Raises:
        CorruptFileError: it is damaged, or declares sizes that do not fit the file.
        UnknownFormatError: a zip archive that torch.save did not write.
        UnsafeFileError: the archive holds code, or the same name twice.
    """
    return _read_zip(source) if source.head.startswith(ZIP_MAGIC) else _read_legacy(source)


def load_plain(file: FileLike) -> Any:
    """The object in a `torch.save` file of any kind, with its tensors: `torch.load` that runs nothing on any torch.

    What the classes of other programs stand for in a full checkpoint is left out: it stays `Opaque`.

    Raises:
        UnsafeFileError: it names or calls something that no checkpoint needs.
        HypernetworkError: it is damaged, or torch.save did not write it.
    """
    with open_source(file) as source:
        checkpoint = read_checkpoint(source)
        check_refusals(checkpoint.refused, source.label, inert_allowed=True)
        return mapped(checkpoint.tree, lambda value: checkpoint.read(value) if isinstance(value, TensorRef) else value)


def _all_inert(refused: list[Refusal]) -> bool:
    return all(is_inert(refusal.name) for refusal in refused)


def is_legacy_stream(head: bytes) -> bool:
    """True when the file's first bytes are those of a legacy (non-zip) `torch.save`."""
    start = head[:64]
    return LEGACY_MAGIC_NUMBER.to_bytes(10, "little") in start or str(LEGACY_MAGIC_NUMBER).encode() in start


def _check_tensors(tensors: Iterable[TensorRef], source: Source) -> None:
    """Each tensor lies inside its storage, and all together are not far larger than the file."""
    storages: dict[str, StorageRef] = {}
    total = 0
    for ref in tensors:
        storage = ref.storage
        known = storages.setdefault(storage.key, storage)
        if known.dtype != storage.dtype or known.count != storage.count:
            raise CorruptFileError(f"{source.label}: the storage {known.key!r} is described in two ways")
        if not _fits(ref.shape, ref.stride, ref.offset, storage.count):
            raise CorruptFileError(
                f"{source.label}: a tensor of shape {list(ref.shape)} does not fit its storage of "
                f"{storage.count:,} values; the file is damaged or was tampered with"
            )
        total += ref.count * item_size(storage.dtype)
    total = max(total, sum(storage.count * item_size(storage.dtype) for storage in storages.values()))
    if total > MAX_SHARING * source.size:
        raise CorruptFileError(
            f"{source.label}: its tensors add up to more than {MAX_SHARING} times the file's "
            f"{source.size:,} bytes; the file is damaged or was tampered with"
        )


@functools.lru_cache(1024)  # the same sizes on both sides, and in other files
def _fits(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, count: int) -> bool:
    """Whether a tensor of these sizes lies in a storage of `count` values, and torch can describe it."""
    values, last = math.prod(shape), offset
    for size, step in zip(shape, stride, strict=False):
        last += (size - 1) * step
    largest = max(values or math.prod(size for size in shape if size), offset, *stride, 0)
    proper = len(shape) == len(stride) and offset >= 0 and largest <= MAX_TENSOR_VALUES
    return proper and (values == 0 or (last < count and values <= count))


def _tensors(tree: object) -> Iterator[TensorRef]:
    """All tensors in the tree; `read_pickle` has bounded its size and depth."""
    pending = [tree]
    while pending:
        item = pending.pop()
        if type(item) in PLAIN:
            continue
        if isinstance(item, TensorRef):
            yield item
        elif isinstance(item, dict):
            pending += item.values()
            pending += item.keys()
        elif isinstance(item, (list, tuple, set, frozenset)):
            pending += item


@functools.cache
def item_size(dtype: str) -> int:
    """Bytes of one value of the torch dtype of that name."""
    return torch.empty(0, dtype=getattr(torch, dtype)).element_size()


def _parse(data: bytes, start: int, source: Source) -> Pickle:
    try:
        return read_pickle(data, start)
    except MalformedPickleError as error:
        # What stands before the damage would already have run in a reader that executes.
        check_refusals(error.refused, source.label, inert_allowed=True)
        raise CorruptFileError(f"{source.label}: its pickle is damaged: {error}. Copy or download it again.") from error


# -- zip, torch 1.6 and newer: <root>/data.pkl and one member <root>/data/<key> per storage


def _read_zip(source: Source) -> Checkpoint:
    with _zip_errors(source):
        source.file.seek(0)
        archive = zipfile.ZipFile(Directory(source.file))
        archive.fp = source.file
    members = _members(archive, source)
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnknownFormatError(
            f"{source.label} is a zip archive but not one that torch.save wrote ({len(members)} members, "
            f"{len(pickles)} named data.pkl); if a hypernetwork is inside, unpack it first"
        )
    root = pickles[0][: -len("data.pkl")]
    if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in members):
        raise UnsafeFileError(f"{source.label} is a TorchScript archive: it holds code, not a hypernetwork; not loaded")
    _check_byte_order(archive, members, root, source)

    def check_storage(ref: StorageRef) -> None:
        name, size = f"{root}data/{ref.key}", ref.count * item_size(ref.dtype)
        if name not in members:
            raise CorruptFileError(f"{source.label}: the storage {ref.key!r} is missing; copy or download it again")
        if members[name].file_size != size:
            raise CorruptFileError(
                f"{source.label}: the storage {ref.key!r} is declared as {size:,} bytes but has "
                f"{members[name].file_size:,}; the file is damaged or was tampered with"
            )

    if members[pickles[0]].file_size > MAX_PICKLE_SIZE:
        raise CorruptFileError(f"{source.label}: data.pkl is larger than {MAX_PICKLE_SIZE >> 20} MiB")
    pickle = _parse(_whole_member(archive, members[pickles[0]], source), 0, source)
    if _all_inert(pickle.refused):
        tensors = list(_tensors(pickle.value))
        _check_tensors(tensors, source)
        for ref in tensors:
            check_storage(ref.storage)
    return Checkpoint(
        pickle.value,
        "zip",
        pickle.refused,
        source.label,
        lambda ref: _member_pieces(archive, members[f"{root}data/{ref.key}"], source),
    )


def _whole_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Source) -> bytes:
    """The contents of a small member; raises CorruptFileError where they are damaged or less than it declares."""
    with _zip_errors(source):
        data = archive.read(member)
        _check_unpacked(member, member.file_size - len(data))
    return data


def _check_unpacked(member: zipfile.ZipInfo, missing: int) -> None:
    if missing:
        raise zipfile.BadZipFile(f"{member.filename!r} unpacks to {missing:,} bytes less than it declares")


def _member_pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Source) -> Iterator[memoryview]:
    """The contents of a member in pieces; raises CorruptFileError at the end where their CRC is wrong.

    Where `source` goes without checksums, as torch.load does, that is found only for a compressed member.
    """
    with _zip_errors(source), archive.open(member) as opened:  # which compares the member's two headers
        if member.compress_type != zipfile.ZIP_STORED:
            left = member.file_size
            while data := opened.read(PIECE_SIZE):
                left -= len(data)
                yield memoryview(bytearray(data))
            _check_unpacked(member, left)
            return
    # What is not compressed is read without zipfile's own buffers.
    name_size, extra_size = struct.unpack("<HH", source.read(member.header_offset + 26, 4))
    crc = 0
    for piece in source.pieces(member.header_offset + 30 + name_size + extra_size, member.file_size):
        if source.checksums:
            crc = zlib.crc32(piece, crc)
        yield piece
    if source.checksums and crc != member.CRC:
        raise CorruptFileError(
            f"{source.label}: the zip archive is damaged (Bad CRC-32 for file {member.filename!r}). "
            "Copy or download it again."
        )


class Directory:
    """A file as zipfile sees it while it lists the members, which it reads in one piece of a declared size."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """As a file's; raises BadZipFile where more is asked for than a list of members takes."""
        # Without a size it asks for the end record, which has at most 64 KiB of comment.
        data = self.file.read(1 << 17 if size < 0 else min(size, MAX_DIRECTORY_SIZE + 1))
        if len(data) > MAX_DIRECTORY_SIZE:
            raise zipfile.BadZipFile(f"its list of members is larger than {MAX_DIRECTORY_SIZE >> 20} MiB")
        return data


def has_second_name(info: zipfile.ZipInfo) -> bool:
    """Whether a member has one name for torch and another for programs that heed a Unicode path (Python since 3.12)."""
    extra = info.extra
    while _UNICODE_PATH in extra and len(extra) >= 4:
        if extra.startswith(_UNICODE_PATH):
            return True
        extra = extra[4 + int.from_bytes(extra[2:4], "little") :]
    return False


def _members(archive: zipfile.ZipFile, source: Source) -> dict[str, zipfile.ZipInfo]:
    """The members by name, after checking names, sizes, compression and that they do not overlap."""
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise CorruptFileError(f"{source.label}: {len(infos):,} zip members, more than {MAX_MEMBERS:,}")
    for info in infos:
        if has_second_name(info):
            raise UnsafeFileError(
                f"{source.label}: the zip member {info.orig_filename!r} has a second name; programs would read "
                "different ones. Do not open the file with other programs; get it from another source."
            )
    members = {info.filename: info for info in infos}
    # torch itself looks members up without regard to case.
    if len({name.lower() for name in members}) != len(infos):
        raise UnsafeFileError(f"{source.label}: two zip members have the same name; programs would read different ones")
    for name in members:
        if _OUTSIDE.search(name):
            raise UnsafeFileError(
                f"{source.label}: the zip member {name!r} would be unpacked outside of its folder; not loaded"
            )
    end = 0
    for info in sorted(infos, key=attrgetter("header_offset")):
        if info.flag_bits & 1:
            raise CorruptFileError(f"{source.label}: the zip member {info.filename!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CorruptFileError(
                f"{source.label}: the zip member {info.filename!r} is compressed by method {info.compress_type}; "
                "torch.save compresses nothing. Pack the archive again without compression"
            )
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise UnsafeFileError(
                f"{source.label}: the zip member {info.filename!r} unpacks to more than {MAX_RATIO} times its size"
            )
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise CorruptFileError(f"{source.label}: the zip member {info.filename!r} declares two sizes")
        if info.header_offset < end or info.header_offset + 30 + info.compress_size > source.size:
            raise CorruptFileError(f"{source.label}: the zip member {info.filename!r} overlaps another or is cut off")
        end = info.header_offset + 30 + info.compress_size
    return members


def _check_byte_order(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], root: str, source: Source) -> None:
    name = f"{root}byteorder"
    if name in members:
        if members[name].file_size > 16:
            raise CorruptFileError(f"{source.label}: its byte order is stated in {members[name].file_size:,} bytes")
        order = _whole_member(archive, members[name], source)
        if order.strip() != b"little":
            raise UnsupportedArchitectureError(
                f"{source.label} was saved on a big-endian machine; save it again on a little-endian one"
            )


_UNICODE_PATH = b"up"  # tag of the extra field, 0x7075
# Absolute paths, drives, and steps upwards, of Windows as well.
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")

# zipfile lets its parts' errors through: of struct and zlib, and RuntimeError for encryption.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError, struct.error, zlib.error)


class _zip_errors:  # noqa: N801 - reads as a statement
    """Turns what zipfile raises into the errors of this package."""

    def __init__(self, source: Source) -> None:
        self.label = source.label

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise HypernetworkError(f"{self.label} cannot be read: {error.strerror or error}") from error
        if isinstance(error, _ZIP_ERRORS):
            raise CorruptFileError(
                f"{self.label}: the zip archive is damaged ({error}). Copy or download it again."
            ) from error


# -- legacy stream: five pickles (magic number, protocol, system, object, storage keys), then the storages' data


def _read_legacy(source: Source) -> Checkpoint:
    pickles = _legacy_pickles(source)
    magic, protocol, system, tree, keys = (pickle.value for pickle in pickles)
    refused = [refusal for pickle in pickles for refusal in pickle.refused]
    # Said before anything else: a reader that executes would run them before it came to these values.
    check_refusals([refusal for pickle in pickles[:3] for refusal in pickle.refused], source.label, inert_allowed=False)
    if magic != LEGACY_MAGIC_NUMBER or protocol != _LEGACY_PROTOCOL:
        raise CorruptFileError(f"{source.label}: a legacy torch file of an unknown protocol ({str(protocol)[:40]})")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnsupportedArchitectureError(f"{source.label} was saved on a big-endian machine; it cannot be read here")
    places: dict[str, int] = {}
    if _all_inert(refused):
        _check_tensors(_tensors(tree), source)
        places = _legacy_places(source, tree, keys, pickles[-1].end)

    def read_storage(ref: StorageRef) -> Iterator[memoryview]:
        return source.pieces(places[ref.key], ref.count * item_size(ref.dtype))

    return Checkpoint(tree, "legacy", refused, source.label, read_storage)


def _legacy_pickles(source: Source) -> list[Pickle]:
    """The five pickles; where the first window holds them, nothing behind it is read."""
    for size in _LEGACY_WINDOWS:
        window = source.read(0, min(source.size, size))
        pickles: list[Pickle] = []
        try:
            while len(pickles) < 5:
                pickles.append(_parse(window, pickles[-1].end if pickles else 0, source))
            break
        except CorruptFileError:
            if size == _LEGACY_WINDOWS[-1] or len(window) == source.size:
                raise
    return pickles


def _legacy_places(source: Source, tree: object, keys: object, start: int) -> dict[str, int]:
    """Offset of each storage's data; they follow in the order of `keys`, each after its number of values."""
    storages = {ref.storage.key: ref.storage for ref in _tensors(tree)}
    if not isinstance(keys, list) or set(map(str, keys)) != storages.keys() or len(keys) != len(storages):
        raise CorruptFileError(
            f"{source.label}: its list of storages does not name those of its tensors; copy or download it again"
        )
    places: dict[str, int] = {}
    offset = start
    for key in map(str, keys):
        count = int.from_bytes(source.read(offset, 8), "little", signed=True)
        if count != storages[key].count:
            raise CorruptFileError(
                f"{source.label}: the storage {key!r} is declared as {storages[key].count:,} values but has {count:,}; "
                "the file is damaged or was tampered with"
            )
        size = count * item_size(storages[key].dtype)
        if offset + 8 + size > source.size:
            raise CorruptFileError(
                f"{source.label} is cut off: a storage of {count:,} values at byte {offset:,} was expected, "
                f"but it ends at {source.size:,}. Copy or download it again."
            )
        places[key] = offset + 8
        offset += 8 + size
    return places
