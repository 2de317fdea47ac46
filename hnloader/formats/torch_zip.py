"""Writes what `torch.save` writes, one tensor at a time: torch itself wants all of them in memory.

The file is a zip archive of stored (not compressed) members below one folder: `data.pkl`, one `data/<n>` per tensor,
and `version`, as torch 1.6 to 2.0 wrote it. AUTOMATIC1111 refuses any other member: before 1.10 `byteorder`,
which torch adds since 2.1, and in all versions `.format_version`, which torch 2.13 adds. Members begin at multiples of
64 bytes, as torch's do, so that torch can map the file. `torch.load` reads it in every version since 1.6, with
`weights_only=True` as well.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._utils

from hnloader.errors import UnsupportedArchitectureError
from hnloader.files import open_new
from hnloader.formats.outgoing import Lazy
from hnloader.formats.pickles import MalformedPickleError, item_size, read_pickle
from hnloader.formats.trees import canonical, check_kinds
from hnloader.texts import shown

_ROOT = "archive"
_ALIGNMENT = 64
_HEADER_SIZE = 30  # of a zip member, before its name
# A zip member's date cannot be before 1980; torch writes no date either.
_NO_DATE = (1980, 1, 1, 0, 0, 0)
_STORAGES = {
    "float64": torch.DoubleStorage,
    "float32": torch.FloatStorage,
    "float16": torch.HalfStorage,
    "bfloat16": torch.BFloat16Storage,
    "int64": torch.LongStorage,
    "int32": torch.IntStorage,
    "int16": torch.ShortStorage,
    "int8": torch.CharStorage,
    "uint8": torch.ByteStorage,
    "bool": torch.BoolStorage,
}


@dataclass(frozen=True, eq=False)
class _Storage:
    key: str
    kind: Any
    count: int


class _Pickler(pickle.Pickler):
    """Puts a description in the place of each `Lazy`, and notes which there were, in order."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.tensors: list[Lazy] = []

    def persistent_id(self, obj: Any) -> Any:
        """How torch names a storage that lies elsewhere in the file."""
        return ("storage", obj.kind, obj.key, "cpu", obj.count) if isinstance(obj, _Storage) else None

    def reducer_override(self, obj: Any) -> Any:
        """A tensor is a call of torch's own function with its storage, shape and strides."""
        if not isinstance(obj, Lazy):
            return NotImplemented
        count = 1
        strides: list[int] = []
        for size in reversed(obj.shape):
            strides.insert(0, count)
            count *= size
        storage = _Storage(str(len(self.tensors)), _STORAGES[obj.dtype], count)
        self.tensors.append(obj)
        described: tuple[object, ...] = (storage, 0, obj.shape, tuple(strides), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, described


def write_tree(path: Path, tree: object) -> None:
    """Write a tree of plain values and `Lazy` tensors into a file that is new or empty.

    The pickle is read back before anything is written, so that no file is made that hnloader would read otherwise.

    Raises:
        UnsupportedArchitectureError: The tree holds what hnloader does not read back unchanged; the message names it.
        OSError: The file cannot be written.
    """
    check_kinds(tree, lambda part: isinstance(part, Lazy), "the file")
    data = io.BytesIO()
    pickler = _Pickler(data)
    pickler.dump(tree)
    _read_back(data.getvalue(), tree)
    with open_new(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "data.pkl", [data.getvalue()], len(data.getvalue()))
        for index, tensor in enumerate(pickler.tensors):
            _add(archive, f"data/{index}", tensor.pieces(), _size(tensor))
        _add(archive, "version", [b"3\n"], 2)


def _read_back(data: bytes, tree: object) -> None:
    try:
        found = read_pickle(data)
    except MalformedPickleError as error:
        raise UnsupportedArchitectureError(
            f"the file would be refused when it is read: {error}. Change or remove that value."
        ) from error
    if found.refused:
        raise UnsupportedArchitectureError(
            f"the file would be refused when it is read: it holds {found.refused[0]}. Change or remove that value."
        )
    for key, one, other in _pairs(tree, found.value):
        if canonical(one, _described) != canonical(other, _described):
            raise UnsupportedArchitectureError(
                f"the value of {shown(key)} would be read back as another value or type. Change or remove it."
            )


def _pairs(one: object, other: object) -> Iterator[tuple[object, object, object]]:
    """What stands under each key of both, so that a message can name the key; else both as they are."""
    if isinstance(one, dict) and isinstance(other, dict) and len(one) == len(other):
        for (key, value), (found_key, found) in zip(one.items(), other.items(), strict=True):
            yield key, (key, value), (found_key, found)
    else:
        yield "the whole file", one, other


def _described(tensor: Any) -> object:
    return tuple(tensor.shape), tensor.dtype


def _size(tensor: Lazy) -> int:
    count = item_size(tensor.dtype)
    for size in tensor.shape:
        count *= size
    return count


def _add(archive: zipfile.ZipFile, name: str, pieces: Iterable[bytes | memoryview], size: int) -> None:
    """Add a member whose data begin at a multiple of 64 bytes, padded in its extra field as torch does."""
    assert archive.fp is not None
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", _NO_DATE)
    begin = archive.fp.tell() + _HEADER_SIZE + len(info.filename) + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    info.file_size = size  # zipfile leaves room for large sizes by it
    with archive.open(info, "w") as member:
        written = sum(member.write(piece) for piece in pieces)
    assert written == size, f"{name} has {written} bytes where {size} were to come"
