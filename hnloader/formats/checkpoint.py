"""Read the files of `torch.save`, zip archives and legacy streams, without running anything in them.

`read_checkpoint` returns the object tree with a `TensorRef` for each tensor and reads no tensor data.
`Checkpoint.read` returns the tensors one by one. Every declared size is compared with the file's size before memory of
that size is allocated. docs/format.md states the limits.

`torch.load(weights_only=True)` is not used: each release accepts other opcodes and globals, the program around it may
allow more, and releases before 2.6 have a hole (CVE-2025-32434). The tests compare both on the same bytes.
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

__all__ = ["ZIP_MAGIC", "Checkpoint", "is_legacy_stream", "load_plain", "read_checkpoint"]

# Size of all tensors to the size of the file: tensors that share a storage, and compressed members, may take more.
MAX_SHARING = 8
MAX_TENSOR_VALUES = 1 << 48
# Bytes that are searched for the pickles at the beginning of a legacy stream.
_LEGACY_WINDOWS = (1 << 16, 2 * MAX_PICKLE_SIZE)

ZIP_MAGIC = zip_archive.MAGIC
# The number with which legacy streams begin, as a pickle.
LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LEGACY_PICKLES = 5


@dataclass
class Checkpoint:
    """The contents of a file that `torch.save` wrote.

    Attributes:
        tree: The saved object; tensors are `TensorRef`, and values that are not allowed are `Opaque`.
        container: "zip" or "legacy".
        refused: What the pickle names that is not on the allow-list; empty for a safe file.
        label: Name of the file in messages.
    """

    tree: object
    container: Literal["zip", "legacy"]
    refused: list[Refusal]
    label: str
    _read_storage: Callable[[StorageRef], Iterator[memoryview]] = field(repr=False)
    _storages: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def read(self, ref: TensorRef) -> Tensor:
        """Return a tensor in the stored dtype, on the CPU; tensors may share memory as saved.

        Raises:
            CorruptFileError: The file is damaged.
        """
        storage = ref.storage
        if storage.key not in self._storages:
            dtype = getattr(torch, storage.dtype, None)
            if dtype is None:
                raise UnsupportedArchitectureError(
                    f"{self.label} holds tensors of {storage.dtype}, which torch {torch.__version__} lacks. "
                    "Install a newer torch."
                )
            data = joined(self._read_storage(storage), storage.count * item_size(storage.dtype))
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self._storages[storage.key] = flat
        return self._storages[storage.key].as_strided(ref.shape, ref.stride, ref.offset)

    def stream(self, ref: TensorRef) -> Iterator[memoryview] | None:
        """Return the bytes of a tensor in pieces; None if it must be read whole. Raises CorruptFileError for damage."""
        strides = [math.prod(ref.shape[axis + 1 :]) for axis in range(len(ref.shape))]
        whole = ref.offset == 0 and ref.count == ref.storage.count and list(ref.stride) == strides
        return self._read_storage(ref.storage) if whole else None

    def forget(self) -> None:
        """Drop the storages that were read and kept because tensors may share them."""
        self._storages.clear()


def read_checkpoint(source: Source) -> Checkpoint:
    """Read a file without its tensor data. If its pickle holds something unsafe, sizes are not checked.

    Raises:
        CorruptFileError: The file is damaged, or declares sizes that do not fit it.
        UnknownFormatError: It is a zip archive that torch.save did not write.
        UnsafeFileError: The archive holds code, or a name twice.
    """
    check_one_reading(source, is_stream=is_legacy_stream(source.head))
    return _read_zip(source) if source.head.startswith(ZIP_MAGIC) else _read_legacy(source)


def load_plain(file: FileLike) -> Any:
    """Load the object in a `torch.save` file of any kind like `torch.load`, without running anything.

    Objects of other programs' classes in a full checkpoint stay `Opaque`.

    Raises:
        UnsafeFileError: The file names or calls something that no checkpoint needs.
        HypernetworkError: The file is damaged, or torch.save did not write it.
    """
    with open_source(file) as source:
        checkpoint = read_checkpoint(source)
        check_refusals(checkpoint.refused, source.label, inert_allowed=True)
        return mapped(checkpoint.tree, lambda value: checkpoint.read(value) if isinstance(value, TensorRef) else value)


def _all_inert(refused: list[Refusal]) -> bool:
    return all(refusal.is_harmless for refusal in refused)


def is_legacy_stream(head: bytes) -> bool:
    """Return whether a file begins like a legacy (non-zip) file of `torch.save`."""
    start = head[:64]
    return LEGACY_MAGIC_NUMBER.to_bytes(10, "little") in start or str(LEGACY_MAGIC_NUMBER).encode() in start


def _check_tensors(tensors: Iterable[TensorRef], source: Source) -> None:
    """Check that each tensor is inside its storage, and that all together are not far larger than the file."""
    storages: dict[str, StorageRef] = {}
    total = 0
    for ref in tensors:
        storage = ref.storage
        known = storages.setdefault(storage.key, storage)
        if (known.dtype, known.count) != (storage.dtype, storage.count) or known.data is not storage.data:
            raise CorruptFileError(
                f"{source.label}: the storage {shown(known.key)} has two descriptions. Download the file again."
            )
        if not _fits(ref.shape, ref.stride, ref.offset, storage.count):
            raise CorruptFileError(
                f"{source.label}: a tensor of shape {list(ref.shape)} does not fit its storage of "
                f"{storage.count:,} values. {_misfit(ref)}"
            )
        total += ref.count * item_size(storage.dtype)
    total = max(total, sum(storage.count * item_size(storage.dtype) for storage in storages.values()))
    if total > MAX_SHARING * source.size:
        raise CorruptFileError(
            f"{source.label}: the tensors add up to more than {MAX_SHARING} times the file's {source.size:,} bytes. "
            f"{_TAMPERED}"
        )


_TAMPERED = "The file is damaged or was tampered with; download it again."


def _misfit(ref: TensorRef) -> str:
    if 0 in ref.stride:  # as `expand` makes them
        return "It repeats values, which hnloader does not read. Save it again after `contiguous()`."
    return _TAMPERED


@functools.lru_cache(1024)  # both sides, and many files, have the same sizes
def _fits(shape: tuple[int, ...], stride: tuple[int, ...], offset: int, count: int) -> bool:
    """Return whether a tensor of these sizes fits a storage of `count` values, and torch can describe it."""
    values, last = math.prod(shape), offset
    for size, step in zip(shape, stride, strict=False):
        last += (size - 1) * step
    largest = max(values or math.prod(size for size in shape if size), offset, *stride, 0)
    proper = len(shape) == len(stride) and offset >= 0 and largest <= MAX_TENSOR_VALUES
    return proper and (values == 0 or (last < count and values <= count))


def _tensors(tree: object) -> Iterator[TensorRef]:
    """Yield all tensors in the tree, whose size and depth `read_pickle` has bounded."""
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
    """Read the pickle at `start` of `data`, which is at `place` of the file without `blobs`."""
    try:
        pickle = read_pickle(data, start, blobs)
        if pickle.has_frames:
            check_pickle(source, place)
        return pickle
    except MalformedPickleError as error:
        _refuse_damaged(error, source, place)


def _refuse_damaged(error: MalformedPickleError, source: Source, place: Place) -> NoReturn:
    """Raise the error for a damaged pickle, or first the one for code that other programs would run."""
    check_pickle(source, place)
    raise CorruptFileError(f"{source.label}: the pickle is damaged. {error} Download the file again.") from error


def _array_pieces(storage: StorageRef, source: Source) -> Iterator[memoryview]:
    """Yield the numbers of an array in the pickle."""
    missing = storage.count * item_size(storage.dtype)
    try:
        for piece in regrouped(_decoded(storage.data, source)):
            missing -= len(piece)
            if missing < 0:
                break
            yield piece
    except UnicodeError as error:
        raise CorruptFileError(
            f"{source.label}: the text that holds a tensor is damaged: {error}. Download the file again."
        ) from error
    if missing:
        raise CorruptFileError(f"{source.label}: a tensor has another size than its shape. Download the file again.")


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
            raise CorruptFileError(f"{source.label}: the storage {shown(ref.key)} is missing. Download the file again.")
        if members[name].unpacked != size:
            raise CorruptFileError(
                f"{source.label}: the storage {shown(ref.key)} is declared as {size:,} bytes but has "
                f"{members[name].unpacked:,}. {_TAMPERED}"
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
    """Refuse an archive from which torch runs code, and members that torch finds by names in other case."""
    root = archive.folder
    for name in archive.members:
        path = name[len(root) :].casefold()
        if path.startswith(("code/", "constants.pkl")):
            raise UnsafeFileError(
                f"{source.label} is a TorchScript archive: it holds code, not a hypernetwork. Nothing was run. "
                "Use a hypernetwork file."
            )
        if path.startswith(".data/") and path not in (".data/serialization_id", ".data/version"):
            raise UnsafeFileError(
                f"{source.label} is a torch.package: it holds code, not a hypernetwork. Nothing was run. Use a "
                "hypernetwork file."
            )
        if path in ("byteorder", "version") and name != root + path:
            raise UnsafeFileError(
                f"{source.label}: torch alone reads the member {shown(name)} as {shown(path)}. "
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
            f"{source.label} is a zip archive that torch.save did not write ({len(members)} members, none named "
            "data.pkl). If a hypernetwork is inside, unpack it first."
        )
    if pickles != [f"{root}data.pkl"]:
        raise UnsafeFileError(
            f"{source.label}: some program would read each of the members {', '.join(map(shown, pickles[:3]))} as the "
            "pickle. torch.save writes one, data.pkl. Do not open the file with other programs; get it from another "
            "source."
        )
    _check_second_format(archive, source)
    if (order := members.get(f"{root}byteorder")) is not None:
        if order.unpacked > 16:
            raise CorruptFileError(f"{source.label}: the member byteorder has {order.unpacked:,} bytes. {_TAMPERED}")
        if archive.read(order).strip() != b"little":
            raise UnsupportedArchitectureError(
                f"{source.label} was saved on a big-endian machine. Save it again on a little-endian one."
            )


def _zip_pickle(archive: Archive, member: Member, source: Source) -> Pickle:
    place = Place(member.start, member.start + member.size, member)
    if member.unpacked <= MAX_PICKLE_SIZE:
        return _parse(archive.read(member), 0, source, place)
    if member.method != zip_archive.STORED:
        raise CorruptFileError(
            f"{source.label}: the compressed data.pkl is larger than {MAX_PICKLE_SIZE >> 20} MiB. Store it "
            "uncompressed."
        )
    return _parse_long(source, place)[0]


def _parse_long(source: Source, place: Place) -> tuple[Pickle, int]:
    """Read a pickle that holds the numbers of tensors, without these; return it and its end."""
    try:
        data, blobs, end = shortened(source, place.start, place.end)
    except MalformedPickleError as error:
        _refuse_damaged(error, source, place)
    return _parse(data, 0, source, place, blobs), end


# -- legacy stream: five pickles (magic number, protocol, system, object, storage keys), then the storages' data


def _read_legacy(source: Source) -> Checkpoint:
    pickles, end = _legacy_pickles(source)
    magic, protocol, system, tree, keys = (pickle.value for pickle in pickles)
    refused = [refusal for pickle in pickles for refusal in pickle.refused]
    # This error comes first: torch would run these before it reads the values.
    check_refusals([refusal for pickle in pickles[:3] for refusal in pickle.refused], source.label)
    if magic != LEGACY_MAGIC_NUMBER or protocol != _LEGACY_PROTOCOL:
        number = protocol if isinstance(protocol, int) else type(protocol).__name__
        raise CorruptFileError(
            f"{source.label}: found a legacy torch file of protocol {number}. Expected 1001; download it again."
        )
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnsupportedArchitectureError(
            f"{source.label} was saved on a big-endian machine. Save it again on a little-endian one."
        )
    places: dict[str, int] = {}
    if _all_inert(refused):
        _check_tensors(_tensors(tree), source)
        try:
            places = _legacy_places(source, tree, keys, end)
        except CorruptFileError:
            # Tensors that hnloader does not read, such as quantized ones, have storages of unknown size too.
            if not refused:
                raise

    def read_storage(ref: StorageRef) -> Iterator[memoryview]:
        if ref.data is not None:
            return _array_pieces(ref, source)
        if ref.key not in places:
            raise UnsupportedArchitectureError(
                f"{source.label}: the tensors follow others that hnloader does not read. Save the file again without "
                "those."
            )
        return source.pieces(places[ref.key], ref.count * item_size(ref.dtype))

    return Checkpoint(tree, "legacy", refused, source.label, read_storage)


def _legacy_pickles(source: Source) -> tuple[list[Pickle], int]:
    """Return the five pickles and their end. Only as much is read as they need."""
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
    # The pickles may hold the numbers of tensors.
    pickles, end = [], 0
    while len(pickles) < _LEGACY_PICKLES:
        pickle, end = _parse_long(source, Place(end, source.size))
        pickles.append(pickle)
    return pickles, end


def _legacy_places(source: Source, tree: object, keys: object, start: int) -> dict[str, int]:
    """Return the offset of each storage's data: they follow in the order of `keys`, each after its number of values."""
    storages = {ref.storage.key: ref.storage for ref in _tensors(tree) if ref.storage.data is None}
    named = keys if isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys) else None
    if named is None or set(map(str, named)) != storages.keys() or len(named) != len(storages):
        raise CorruptFileError(
            f"{source.label}: the list of storages does not match the tensors. Download the file again."
        )
    places: dict[str, int] = {}
    offset = start
    for key in map(str, named):
        count = int.from_bytes(source.read(offset, 8), "little", signed=True)
        stored = storages[key].count * (item_size(storages[key].dtype) if storages[key].is_untyped else 1)
        if count != stored:
            raise CorruptFileError(
                f"{source.label}: the storage {shown(key)} is declared as {storages[key].count:,} values but has "
                f"{count:,}. {_TAMPERED}"
            )
        size = storages[key].count * item_size(storages[key].dtype)
        if offset + 8 + size > source.size:
            raise CorruptFileError(
                f"{source.label} is cut off: expected a storage of {count:,} values at byte {offset:,}, but the file "
                f"ends at {source.size:,}. Download it again."
            )
        places[key] = offset + 8
        offset += 8 + size
    return places
