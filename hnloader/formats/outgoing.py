"""What a format writes: a hypernetwork whose tensors are fetched one at a time, so that none waits in memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hnloader.errors import UnsupportedArchitectureError
from hnloader.formats.architecture import OLD_NAMES
from hnloader.formats.contents import Contents, check_finite, is_tensor_info, state_dict
from hnloader.formats.source import PIECE_SIZE
from hnloader.formats.trees import check_kinds, mapped
from hnloader.network import SIDES, Hypernetwork, SideName
from hnloader.texts import as_text, shown

# Of tensors that files keep, by the names of torch.
STORED_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)


@dataclass(frozen=True, eq=False)
class Lazy:
    """A tensor to be written: its shape, the name of its torch dtype, and how to get it.

    `get` gives it on the CPU and contiguous, of exactly that shape and dtype; `stream` its bytes in pieces, or None
    where they can only be got all at once.
    """

    shape: tuple[int, ...]
    dtype: str
    get: Callable[[], Tensor]
    stream: Callable[[], Iterator[memoryview] | None] = lambda: None

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes in the order of the file, each piece good until the next is asked for."""
        streamed = self.stream()
        if streamed is not None:
            yield from streamed
            return
        tensor = self.get()
        view = memoryview(tensor_bytes(tensor)).cast("B")
        for at in range(0, len(view), PIECE_SIZE):
            yield view[at : at + PIECE_SIZE]


class Stored(Protocol):
    """A file that gives its tensors one by one, as `Contents` and `Checkpoint` do."""

    @property
    def label(self) -> str:
        """What messages call the file."""

    @property
    def read(self) -> Callable[[Any], Tensor]:
        """Gives a tensor."""

    @property
    def forget(self) -> Callable[[], None]:
        """Drops what `read` keeps."""

    @property
    def stream(self) -> Callable[[Any], Iterator[memoryview] | None]:
        """Gives a tensor's bytes in pieces; None for one that must be read whole."""


@dataclass(frozen=True, eq=False)
class Outgoing:
    """What is to be written.

    Attributes:
        name: what the hypernetwork is called.
        widths: in the order of the file.
        sides: tensors of each side by the names in the file.
        metadata: its keys besides the widths; tensors in it are `Lazy`.
        variant: where it came from, in words.
        notes: further text for the header of a format that has one, by key.
        hashes: the same for sha256 in hex that are known when the tensors are written, not before.
        ordered: The state dicts of a `.pt` are OrderedDicts.
        data_hash: a format that has a place for the sha256 of the tensors' data states it, which takes time.
    """

    name: str
    widths: tuple[int, ...]
    sides: Mapping[tuple[int, SideName], Mapping[str, Lazy]]
    metadata: Mapping[str, object]
    variant: str
    notes: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    data_hash: bool = True
    ordered: bool = False


def from_hypernetwork(hypernetwork: Hypernetwork, suffix: str) -> Outgoing:
    """A hypernetwork in memory; raises UnsupportedArchitectureError for a composition, which no `suffix` file holds."""
    if hypernetwork.architecture is None:
        raise UnsupportedArchitectureError(
            f"{as_text(hypernetwork.name)} is a composition of several hypernetworks; a {suffix} file holds one. "
            "Save its members, or make one of it with hnloader.merge."
        )
    sides = {
        (width, side): {name: _held(tensor) for name, tensor in state_dict(hypernetwork, width, side).items()}
        for width in hypernetwork.widths
        for side in SIDES
    }
    metadata = {_checked_key(key): lazily(value, f"metadata[{shown(key)}]") for key, value in _items(hypernetwork)}
    return Outgoing(hypernetwork.name, hypernetwork.widths, sides, metadata, hypernetwork.variant)


def from_contents(contents: Contents, stem: str) -> Outgoing:
    """A file whose tensors are not read yet; `stem` is its name where it holds none.

    `get` raises CorruptFileError where the data are damaged or not finite.
    """
    old = {new: name for name, new in OLD_NAMES.items()} if contents.old_names else {}

    def written(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return old.get(f"{module}.", f"{module}.") + leaf

    sides = {
        (width, side): {
            written(name): _stored(contents, info, f"{name} of the {side} side of width {width}")
            for name, info in tensors.items()
        }
        for (width, side), tensors in contents.sides.items()
    }
    name = contents.metadata.get("name")
    metadata = {key: lazily_stored(value, contents) for key, value in contents.metadata.items()}
    return Outgoing(
        name if isinstance(name, str) and name else stem,
        contents.widths,
        sides,
        metadata,
        contents.origin,
        ordered=contents.ordered is True,
    )


def _items(hypernetwork: Hypernetwork) -> Iterable[tuple[object, object]]:
    return hypernetwork.metadata.items()


def _checked_key(key: object) -> str:
    if type(key) is not str:
        kind = type(key).__name__
        raise UnsupportedArchitectureError(f"metadata: the key {shown(key)} is a {kind}. Use text as the keys.")
    return key


def _held(tensor: Tensor) -> Lazy:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in STORED_DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        kind = "on the meta device" if tensor.is_meta else f"of {tensor.dtype} in the layout {tensor.layout}"
        raise UnsupportedArchitectureError(
            f"a tensor {kind} of shape {list(tensor.shape)} was found, which cannot be saved. Use a dense tensor of "
            f"one of {', '.join(STORED_DTYPES)}."
        )
    ready = tensor.detach().cpu().resolve_neg().contiguous()
    return Lazy(tuple(ready.shape), dtype, lambda: ready)


def _stored(contents: Stored, info: Any, where: str | None) -> Lazy:
    def get() -> Tensor:
        tensor = contents.read(info).contiguous()
        contents.forget()
        if where is not None:
            check_finite(tensor, f"{contents.label}: {where}")
        return tensor

    def stream() -> Iterator[memoryview] | None:
        pieces = contents.stream(info)
        return pieces if pieces is None or where is None else _finite(pieces, getattr(torch, info.dtype), get)

    return Lazy(tuple(info.shape), info.dtype, get, stream)


def _finite(pieces: Iterator[memoryview], dtype: torch.dtype, get: Callable[[], Tensor]) -> Iterator[memoryview]:
    """`pieces`; where a value is NaN or infinite, `get` raises what is to be said about the whole tensor."""
    for piece in pieces:
        values = torch.frombuffer(piece, dtype=dtype)
        # As in check_finite; float16 is summed in float32, where it does not overflow.
        total = values.sum(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        if not math.isfinite(total.item()) and not torch.isfinite(values).all():
            get()
        yield piece


def tensor_bytes(tensor: Tensor) -> ctypes.Array[ctypes.c_char] | bytes:
    """The memory of a contiguous CPU tensor, without a copy."""
    size = tensor.numel() * tensor.element_size()
    return (ctypes.c_char * size).from_address(tensor.data_ptr()) if size else b""


def lazily(value: object, where: str = "the file") -> object:
    """Return `value` with each tensor in it as a `Lazy`.

    Raises:
        UnsupportedArchitectureError: It holds what no file keeps; the message names it and its place, after `where`.
    """
    check_kinds(value, lambda part: isinstance(part, Tensor), where)
    return mapped(value, lambda part: _held(part) if isinstance(part, Tensor) else part)


def lazily_stored(value: object, stored: Stored) -> object:
    """Return a value of a file with each tensor in it as a `Lazy`, which is read when it is asked for."""
    return mapped(value, lambda part: _stored(stored, part, None) if is_tensor_info(part) else part)
