"""Write the files of `torch.save` one tensor at a time; torch itself needs all of them in memory.

The file is a zip archive of stored (not compressed) members below one folder: `data.pkl`, one `data/<n>` per tensor,
and `version`, as torch 1.6 to 2.0 wrote it. AUTOMATIC1111 refuses other members: before 1.10 the `byteorder` of torch
2.1 and newer, and in all versions the `.format_version` of torch 2.13. Members begin at multiples of 64 bytes, so that
torch can map the file. `torch.load` reads it in every version since 1.6, with `weights_only=True` as well.
"""

from __future__ import annotations

import io
import math
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
from hnloader.formats.pickles import STORAGE_DTYPES, MalformedPickleError, item_size, read_pickle
from hnloader.formats.trees import canonical, check_kinds
from hnloader.texts import shown

__all__ = ["write_tree"]

_ROOT = "archive"
_ALIGNMENT = 64
_HEADER_SIZE = 30  # of a zip member, before its name
# The first date that a zip member can have; torch omits the date as well.
_NO_DATE = (1980, 1, 1, 0, 0, 0)
_STORAGES = {dtype: getattr(torch, name) for name, dtype in STORAGE_DTYPES.items() if name != "UntypedStorage"}


@dataclass(frozen=True, eq=False)
class _Storage:
    key: str
    kind: Any
    count: int


class _Pickler(pickle.Pickler):
    """Writes a description for each `Lazy` and collects them in order."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.tensors: list[Lazy] = []

    def persistent_id(self, obj: Any) -> Any:
        """Return torch's reference to a storage in another member."""
        return ("storage", obj.kind, obj.key, "cpu", obj.count) if isinstance(obj, _Storage) else None

    def reducer_override(self, obj: Any) -> Any:
        """Describe a tensor as a call of torch's function with its storage, shape and strides."""
        if not isinstance(obj, Lazy):
            return NotImplemented
        strides = tuple(math.prod(obj.shape[axis + 1 :]) for axis in range(len(obj.shape)))
        storage = _Storage(str(len(self.tensors)), _STORAGES[obj.dtype], math.prod(obj.shape))
        self.tensors.append(obj)
        described: tuple[object, ...] = (storage, 0, obj.shape, strides, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, described


def write_tree(path: Path, tree: object) -> None:
    """Write a tree of plain values and `Lazy` tensors into a file that is new or empty.

    The pickle is read back first, so that hnloader never writes a file that it would read differently.

    Raises:
        UnsupportedArchitectureError: hnloader would not read the tree back unchanged. The message names the value.
        OSError: The file cannot be written.
    """
    check_kinds(tree, lambda part: isinstance(part, Lazy), "The file")
    data = io.BytesIO()
    pickler = _Pickler(data)
    pickler.dump(tree)
    _read_back(data.getvalue(), tree)
    with open_new(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "data.pkl", [data.getvalue()], len(data.getvalue()))
        for index, tensor in enumerate(pickler.tensors):
            _add(archive, f"data/{index}", tensor.pieces(), math.prod(tensor.shape) * item_size(tensor.dtype))
        _add(archive, "version", [b"3\n"], 2)


def _read_back(data: bytes, tree: object) -> None:
    try:
        found = read_pickle(data)
    except MalformedPickleError as error:
        raise UnsupportedArchitectureError(
            f"The file could not be read back. {error} Change or remove that value."
        ) from error
    if found.refused:
        raise UnsupportedArchitectureError(
            f"The file could not be read back: it holds {found.refused[0]}. Change or remove that value."
        )
    for key, one, other in _pairs(tree, found.value):
        if canonical(one, _described) != canonical(other, _described):
            raise UnsupportedArchitectureError(
                f"{shown(key)}: the value would be read back as another value or type. Change or remove it."
            )


def _pairs(one: object, other: object) -> Iterator[tuple[object, object, object]]:
    """Yield each key with the values of both, so that a message can name it; for other trees, both trees."""
    if isinstance(one, dict) and isinstance(other, dict) and len(one) == len(other):
        for (key, value), (found_key, found) in zip(one.items(), other.items(), strict=True):
            yield key, (key, value), (found_key, found)
    else:
        yield "The whole file", one, other


def _described(tensor: Any) -> object:
    return tuple(tensor.shape), tensor.dtype


def _add(archive: zipfile.ZipFile, name: str, pieces: Iterable[bytes | memoryview], size: int) -> None:
    """Add a member whose data begins at a multiple of 64 bytes, padded in its extra field as torch does."""
    assert archive.fp is not None
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", _NO_DATE)
    begin = archive.fp.tell() + _HEADER_SIZE + len(info.filename) + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    info.file_size = size  # by which zipfile reserves room for large sizes
    with archive.open(info, "w") as member:
        written = sum(member.write(piece) for piece in pieces)
    assert written == size, f"{name} has {written} bytes instead of {size}"
