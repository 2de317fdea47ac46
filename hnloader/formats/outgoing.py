"""The input of every format's writer: a hypernetwork whose tensors are fetched one at a time, to save memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hnloader.errors import UnsupportedArchitectureError
from hnloader.formats.architecture import old_name
from hnloader.formats.checkpoint import Checkpoint
from hnloader.formats.contents import Contents, check_finite, is_tensor_info
from hnloader.formats.source import PIECE_SIZE
from hnloader.formats.trees import check_kinds, mapped
from hnloader.network import SIDES, Hypernetwork, SideName
from hnloader.scopes import Scope
from hnloader.texts import as_text, shown

__all__ = ["Lazy", "Outgoing", "from_contents", "from_hypernetwork", "held", "lazily", "lazily_stored", "tensor_bytes"]

# Names of the torch dtypes that files keep.
STORED_DTYPES = (
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)

Stored: TypeAlias = Contents | Checkpoint  # a file that returns its tensors one by one


@dataclass(frozen=True, eq=False)
class Lazy:
    """A tensor to be written: its shape, the name of its torch dtype, and how to get it.

    `get` returns it on the CPU and contiguous, of exactly that shape and dtype; `stream` its bytes in pieces, or None
    if they are only available at once.
    """

    shape: tuple[int, ...]
    dtype: str
    get: Callable[[], Tensor]
    stream: Callable[[], Iterator[memoryview] | None] = lambda: None

    def pieces(self) -> Iterator[memoryview]:
        """Yield its bytes in the order of the file, each piece valid until the next one."""
        streamed = self.stream()
        if streamed is not None:
            yield from streamed
            return
        tensor = self.get()
        view = memoryview(tensor_bytes(tensor)).cast("B")
        for at in range(0, len(view), PIECE_SIZE):
            yield view[at : at + PIECE_SIZE]


@dataclass(frozen=True, eq=False)
class Outgoing:
    """A hypernetwork to be written.

    Attributes:
        name: Name of the hypernetwork.
        scopes: Scopes in the order of the file. Most are a whole width.
        sides: Tensors of each side by their names in the file.
        metadata: All other keys; tensors in it are `Lazy`.
        variant: Program and variant that it came from.
        notes: Further text for the header of a format that has one, by key.
        hashes: The same for sha256 in hex that are known after the tensors are written, not before.
        data_hash: State the sha256 of the tensors' data if the format has a place for it, which takes time.
        ordered: The state dicts of a `.pt` are OrderedDicts.
    """

    name: str
    scopes: tuple[Scope, ...]
    sides: Mapping[tuple[Scope, SideName], Mapping[str, Lazy]]
    metadata: Mapping[str, object]
    variant: str
    notes: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    data_hash: bool = True
    ordered: bool = False


def from_hypernetwork(hypernetwork: Hypernetwork, suffix: str) -> Outgoing:
    """Prepare a hypernetwork in memory for a file that ends in `suffix`.

    Raises:
        UnsupportedArchitectureError: It is a composition, or holds values that files do not keep.
    """
    if hypernetwork.architecture is None:
        raise UnsupportedArchitectureError(
            f"{as_text(hypernetwork.name)} is a composition of several hypernetworks, and a {suffix} file holds one. "
            "Save its members, or merge them with hnloader.merge."
        )
    sides = {
        (scope, side): {
            _written(name, hypernetwork.old_names): held(tensor)
            for name, tensor in hypernetwork.side(scope, side).state_dict().items()
        }
        for scope in hypernetwork.scopes
        for side in SIDES
    }
    metadata: dict[str, object] = {}
    for key, value in hypernetwork.metadata.items():
        if type(key) is not str:
            raise UnsupportedArchitectureError(
                f"The metadata has the key {shown(key)}, a {type(key).__name__}. Use text as keys."
            )
        metadata[key] = lazily(value, f"metadata[{shown(key)}]")
    return Outgoing(hypernetwork.name, hypernetwork.scopes, sides, metadata, hypernetwork.variant)


def from_contents(contents: Contents, stem: str) -> Outgoing:
    """Prepare a file whose tensors are not read yet; `stem` is its name if it holds none.

    `Lazy.get` raises CorruptFileError if the data is damaged or not finite.
    """
    sides = {
        (scope, side): {
            _written(name, contents.old_names): _stored(contents, info, f"{name} of the {side} side of {scope.label}")
            for name, info in tensors.items()
        }
        for (scope, side), tensors in contents.sides.items()
    }
    metadata = {key: lazily_stored(value, contents) for key, value in contents.metadata.items()}
    ordered = contents.ordered is True
    return Outgoing(contents.name(stem), contents.scopes, sides, metadata, contents.origin, ordered=ordered)


def _written(name: str, old_names: bool) -> str:
    return old_name(name) if old_names else name


def held(tensor: Tensor) -> Lazy:
    """Return a tensor in memory as a `Lazy`. Raises UnsupportedArchitectureError if files do not keep its kind."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in STORED_DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        kind = "on the meta device" if tensor.is_meta else f"of {tensor.dtype} in the layout {tensor.layout}"
        raise UnsupportedArchitectureError(
            f"A tensor {kind} of shape {list(tensor.shape)} cannot be saved. Use a dense tensor of one of "
            f"{', '.join(STORED_DTYPES)}."
        )
    ready = tensor.detach().cpu().resolve_neg().contiguous()
    return Lazy(tuple(ready.shape), dtype, lambda: ready)


def _stored(stored: Stored, info: Any, where: str | None) -> Lazy:
    def get() -> Tensor:
        tensor = stored.read(info).contiguous()
        stored.forget()
        if where is not None:
            check_finite(tensor, f"{stored.label}: {where}")
        return tensor

    def stream() -> Iterator[memoryview] | None:
        pieces = stored.stream(info)
        return pieces if pieces is None or where is None else _finite(pieces, getattr(torch, info.dtype), get)

    return Lazy(tuple(info.shape), info.dtype, get, stream)


def _finite(pieces: Iterator[memoryview], dtype: torch.dtype, get: Callable[[], Tensor]) -> Iterator[memoryview]:
    """Yield `pieces`; if a value is NaN or infinite, `get` raises the error about the whole tensor."""
    for piece in pieces:
        values = torch.frombuffer(piece, dtype=dtype)
        # As in check_finite; float16 is summed in float32, where it does not overflow.
        total = values.sum(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        if not math.isfinite(total.item()) and not torch.isfinite(values).all():
            get()
        yield piece


def tensor_bytes(tensor: Tensor) -> ctypes.Array[ctypes.c_char] | bytes:
    """Return the memory of a contiguous CPU tensor, without a copy."""
    size = tensor.numel() * tensor.element_size()
    return (ctypes.c_char * size).from_address(tensor.data_ptr()) if size else b""


def lazily(value: object, where: str = "The file") -> object:
    """Return `value` with each tensor in it as a `Lazy`.

    Raises:
        UnsupportedArchitectureError: It holds what files do not keep. The message names it and its place after `where`.
    """
    check_kinds(value, lambda part: isinstance(part, Tensor), where)
    return mapped(value, lambda part: held(part) if isinstance(part, Tensor) else part)


def lazily_stored(value: object, stored: Stored) -> object:
    """Return a value of a file with each tensor in it as a `Lazy` that is read on demand."""
    return mapped(value, lambda part: _stored(stored, part, None) if is_tensor_info(part) else part)
