"""Reads what `torch.save` wrote, zip or legacy stream, without running anything in it.

`read_checkpoint` gives the object tree with a `TensorRef` in the place of each tensor: no tensor data is read.
`Checkpoint.read` then gives the tensors one by one. Every declared size is held against the file's own size
before anything of that size is made. docs/format.md states the limits.

torch.load is not used. Its `weights_only` accepts other opcodes and globals in each release (2.0 knows no
protocol 3 or newer, 2.4 and newer may be widened by the program around it) and had a hole before 2.6
(CVE-2025-32434); the tests hold this reader against it on the same bytes.
"""

from __future__ import annotations

import codecs
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from hnloader.errors import (
    CorruptFileError,
    UnknownFormatError,
    UnsafeFileError,
    UnsupportedArchitectureError,
)
from hnloader.formats import zip_archive
from hnloader.formats.ambiguity import Place, check_one_reading, check_pickle
from hnloader.formats.big_arguments import shortened
from hnloader.formats.pickles import (
    MAX_PICKLE_SIZE,
    PLAIN,
    Blob,
    MalformedPickleError,
    Pickle,
    Refusal,
    StorageRef,
    TensorRef,
    item_size,
    read_pickle,
)
from hnloader.formats.refusals import check_refusals
from hnloader.formats.source import FileLike, Source, joined, open_source, regrouped
from hnloader.formats.trees import mapped
from hnloader.formats.zip_archive import Archive, Member, open_archive
from hnloader.texts import shown

# Tensors that share a storage are copied apart when they are cast: together at most this many times the file.
# So are storages in compressed zip members.
MAX_SHARING = 8
MAX_TENSOR_VALUES = 1 << 48
# The pickles of a legacy stream lie at its beginning, and are far smaller than the first of these.
_LEGACY_WINDOWS = (1 << 16, 2 * MAX_PICKLE_SIZE)

ZIP_MAGIC = zip_archive.MAGIC
# The pickle of the number 0x1950a86a20f9469cfc6c, with which legacy streams begin.
LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LEGACY_PICKLES = 5


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
            dtype = getattr(torch, storage.dtype, None)
            if dtype is None:
                raise UnsupportedArchitectureError(
                    f"{self.label} holds tensors of {storage.dtype}, which torch {torch.__version__} does not have. "
                    "Install a newer torch."
                )
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
    check_one_reading(source, is_stream=is_legacy_stream(source.head))
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
    return all(refusal.is_harmless for refusal in refused)


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
        if (known.dtype, known.count) != (storage.dtype, storage.count) or known.data is not storage.data:
            raise CorruptFileError(f"{source.label}: the storage {shown(known.key)} is described in two ways")
        if not _fits(ref.shape, ref.stride, ref.offset, storage.count):
            raise CorruptFileError(
                f"{source.label}: a tensor of shape {list(ref.shape)} does not fit its storage of "
                f"{storage.count:,} values: {_misfit(ref)}"
            )
        total += ref.count * item_size(storage.dtype)
    total = max(total, sum(storage.count * item_size(storage.dtype) for storage in storages.values()))
    if total > MAX_SHARING * source.size:
        raise CorruptFileError(
            f"{source.label}: its tensors add up to more than {MAX_SHARING} times the file's "
            f"{source.size:,} bytes; the file is damaged or was tampered with"
        )


def _misfit(ref: TensorRef) -> str:
    if 0 in ref.stride:  # as `expand` makes them
        return "it repeats values, which hnloader does not read. Save it again after `contiguous()`."
    return "the file is damaged or was tampered with"


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


def _parse(data: bytes, start: int, source: Source, place: Place, blobs: Sequence[Blob] = ()) -> Pickle:
    """Read a pickle; where it is damaged or above a limit, say first what other programs would run of it.

    Args:
        data: The bytes.
        start: Where the pickle begins in `data`.
        source: The file.
        place: Where the pickle stands in the file.
        blobs: What was left in the file.
    """
    try:
        pickle = read_pickle(data, start, blobs)
        if pickle.has_frames:
            check_pickle(source, place)
        return pickle
    except MalformedPickleError as error:
        # What stands before the damage would already have run in a reader that executes.
        _say_damaged(error, source, place)


def _say_damaged(error: MalformedPickleError, source: Source, place: Place) -> NoReturn:
    check_pickle(source, place)
    raise CorruptFileError(f"{source.label}: its pickle is damaged: {error}. Copy or download it again.") from error


def _array_pieces(storage: StorageRef, source: Source) -> Iterator[memoryview]:
    """The numbers of an array that stand in the pickle."""
    missing = storage.count * item_size(storage.dtype)
    try:
        for piece in regrouped(_decoded(storage.data, source)):
            missing -= len(piece)
            if missing < 0:
                break
            yield piece
    except UnicodeError as error:
        raise CorruptFileError(f"{source.label}: the text that holds a tensor is damaged: {error}") from error
    if missing:
        raise CorruptFileError(f"{source.label}: a tensor has another size than its shape says; the file is damaged")


def _decoded(data: bytes | Blob | None, source: Source) -> Iterator[memoryview]:
    if not isinstance(data, Blob):
        yield memoryview(bytearray(data or b""))
    elif not data.is_text:
        yield from source.pieces(data.offset, data.size)
    else:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for piece in source.pieces(data.offset, data.size):
            yield memoryview(bytearray(decoder.decode(piece).encode(data.encoding or "utf-8")))
        decoder.decode(b"", True)


# -- zip, torch 1.6 and newer: <root>/data.pkl and one member <root>/data/<key> per storage


def _read_zip(source: Source) -> Checkpoint:
    archive = open_archive(source)
    members = archive.members
    _check_members(archive, source)
    root = archive.folder
    pickle = _zip_pickle(archive, members[f"{root}data.pkl"], source)

    def check_storage(ref: StorageRef) -> None:
        name, size = f"{root}data/{ref.key}", ref.count * item_size(ref.dtype)
        if name not in members:
            raise CorruptFileError(
                f"{source.label}: the storage {shown(ref.key)} is missing; copy or download it again"
            )
        if members[name].unpacked != size:
            raise CorruptFileError(
                f"{source.label}: the storage {shown(ref.key)} is declared as {size:,} bytes but has "
                f"{members[name].unpacked:,}; the file is damaged or was tampered with"
            )

    if _all_inert(pickle.refused):
        tensors = list(_tensors(pickle.value))
        _check_tensors(tensors, source)
        for ref in tensors:
            if ref.storage.data is None:
                check_storage(ref.storage)

    def read_storage(ref: StorageRef) -> Iterator[memoryview]:
        if ref.data is not None:
            return _array_pieces(ref, source)
        return archive.pieces(members[f"{root}data/{ref.key}"], source.checksums)

    return Checkpoint(pickle.value, "zip", pickle.refused, source.label, read_storage)


def _check_second_format(archive: Archive, source: Source) -> None:
    """Refuse an archive that torch runs code from, and members that torch finds by names in other case."""
    root = archive.folder
    for name in archive.members:
        path = name[len(root) :].casefold()
        if path.startswith(("code/", "constants.pkl")):
            raise UnsafeFileError(
                f"{source.label} is a TorchScript archive: it holds code, not a hypernetwork; not loaded"
            )
        if path.startswith(".data/") and path not in (".data/serialization_id", ".data/version"):
            raise UnsafeFileError(f"{source.label} is a torch.package: it holds code, not a hypernetwork; not loaded")
        if path in ("byteorder", "version") and name != root + path:
            raise UnsafeFileError(
                f"{source.label}: torch reads its member {shown(name)} as {shown(path)}, and other programs do not. "
                "torch.save writes no such name. Do not open the file with other programs; get it from another source."
            )


def _check_members(archive: Archive, source: Source) -> None:
    """Check that the archive is one that torch.save wrote, and that every program finds the same pickle in it."""
    root, members = archive.folder, archive.members
    if any(name.casefold().endswith("/.data/extern_modules") for name in members):
        _check_second_format(archive, source)
    pickles = [name for name in members if name.casefold().endswith("/data.pkl")]
    if not pickles:
        raise UnknownFormatError(
            f"{source.label} is a zip archive but not one that torch.save wrote ({len(members)} members, none named "
            "data.pkl); if a hypernetwork is inside, unpack it first"
        )
    if pickles != [f"{root}data.pkl"]:
        raise UnsafeFileError(
            f"{source.label}: its members {', '.join(map(shown, pickles[:3]))} would each be read as the pickle by "
            "some program. torch.save writes one, data.pkl. Do not open the file with other programs; get it from "
            "another source."
        )
    _check_second_format(archive, source)
    if (order := members.get(f"{root}byteorder")) is not None:
        if order.unpacked > 16:
            raise CorruptFileError(f"{source.label}: its byte order is stated in {order.unpacked:,} bytes")
        if archive.read(order).strip() != b"little":
            raise UnsupportedArchitectureError(
                f"{source.label} was saved on a big-endian machine; save it again on a little-endian one"
            )


def _zip_pickle(archive: Archive, member: Member, source: Source) -> Pickle:
    place = Place(member.start, member.start + member.size, member)
    if member.unpacked <= MAX_PICKLE_SIZE:
        return _parse(archive.read(member), 0, source, place)
    if member.method != zip_archive.STORED:
        raise CorruptFileError(f"{source.label}: its compressed data.pkl is larger than {MAX_PICKLE_SIZE >> 20} MiB")
    return _parse_long(source, place)[0]


def _parse_long(source: Source, place: Place) -> tuple[Pickle, int]:
    """Read a pickle that holds its numbers itself, without these; give where it ends as well."""
    try:
        data, blobs, end = shortened(source, place.start, place.end)
    except MalformedPickleError as error:
        _say_damaged(error, source, place)
    return _parse(data, 0, source, place, blobs), end


# -- legacy stream: five pickles (magic number, protocol, system, object, storage keys), then the storages' data


def _read_legacy(source: Source) -> Checkpoint:
    pickles, end = _legacy_pickles(source)
    magic, protocol, system, tree, keys = (pickle.value for pickle in pickles)
    refused = [refusal for pickle in pickles for refusal in pickle.refused]
    # Said before anything else: a reader that executes would run them before it came to these values.
    check_refusals([refusal for pickle in pickles[:3] for refusal in pickle.refused], source.label)
    if magic != LEGACY_MAGIC_NUMBER or protocol != _LEGACY_PROTOCOL:
        raise CorruptFileError(f"{source.label}: a legacy torch file of protocol {_number_or_type(protocol)}, not 1001")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnsupportedArchitectureError(f"{source.label} was saved on a big-endian machine; it cannot be read here")
    places: dict[str, int] = {}
    if _all_inert(refused):
        _check_tensors(_tensors(tree), source)
        try:
            places = _legacy_places(source, tree, keys, end)
        except CorruptFileError:
            # What is not read here, such as a quantised tensor, has storages too, of an unknown size.
            if not refused:
                raise

    def read_storage(ref: StorageRef) -> Iterator[memoryview]:
        if ref.data is not None:
            return _array_pieces(ref, source)
        if ref.key not in places:
            raise UnsupportedArchitectureError(
                f"{source.label}: its tensors stand behind others of a kind that hnloader does not read"
            )
        return source.pieces(places[ref.key], ref.count * item_size(ref.dtype))

    return Checkpoint(tree, "legacy", refused, source.label, read_storage)


def _number_or_type(value: object) -> object:
    return value if isinstance(value, int) else type(value).__name__


def _legacy_pickles(source: Source) -> tuple[list[Pickle], int]:
    """The five pickles, and where they end; where the first window holds them, nothing behind it is read."""
    for size in _LEGACY_WINDOWS:
        window = source.read(0, min(source.size, size))
        pickles: list[Pickle] = []
        try:
            while len(pickles) < _LEGACY_PICKLES:
                start = pickles[-1].end if pickles else 0
                pickles.append(_parse(window, start, source, Place(start, source.size)))
            return pickles, pickles[-1].end
        except CorruptFileError:
            if len(window) == source.size:
                raise
    # Their texts may hold the numbers.
    pickles, end = [], 0
    while len(pickles) < _LEGACY_PICKLES:
        pickle, end = _parse_long(source, Place(end, source.size))
        pickles.append(pickle)
    return pickles, end


def _legacy_places(source: Source, tree: object, keys: object, start: int) -> dict[str, int]:
    """Offset of each storage's data; they follow in the order of `keys`, each after its number of values."""
    storages = {ref.storage.key: ref.storage for ref in _tensors(tree) if ref.storage.data is None}
    named = keys if isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys) else None
    if named is None or set(map(str, named)) != storages.keys() or len(named) != len(storages):
        raise CorruptFileError(
            f"{source.label}: its list of storages does not name those of its tensors; copy or download it again"
        )
    places: dict[str, int] = {}
    offset = start
    for key in map(str, named):
        count = int.from_bytes(source.read(offset, 8), "little", signed=True)
        stored = storages[key].count * (item_size(storages[key].dtype) if storages[key].is_untyped else 1)
        if count != stored:
            raise CorruptFileError(
                f"{source.label}: the storage {shown(key)} is declared as {storages[key].count:,} values but has "
                f"{count:,}; the file is damaged or was tampered with"
            )
        size = storages[key].count * item_size(storages[key].dtype)
        if offset + 8 + size > source.size:
            raise CorruptFileError(
                f"{source.label} is cut off: a storage of {count:,} values at byte {offset:,} was expected, "
                f"but it ends at {source.size:,}. Copy or download it again."
            )
        places[key] = offset + 8
        offset += 8 + size
    return places
