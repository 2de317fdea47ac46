"""Trees of plain values: dicts, lists, tuples and sets within each other, as pickles and headers hold them."""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from hnloader.errors import UnsupportedArchitectureError
from hnloader.texts import shown

__all__ = ["canonical", "check_kinds", "has_at_most", "mapped"]

MAX_DEPTH = 64
# Only exactly these are written: a subclass would read back as another class.
_LEAVES = frozenset({type(None), bool, int, float, str, bytes, bytearray, torch.Size})
_CONTAINERS = frozenset({dict, OrderedDict, list, tuple, set, frozenset})


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a tree with every leaf replaced by `change(leaf)`.

    Keys of dicts and items of sets are leaves too, and so is a list or tuple of another class. A dict of another class
    becomes a dict or an OrderedDict.
    """
    if isinstance(value, dict):
        pairs = ((mapped(key, change), mapped(part, change)) for key, part in value.items())
        return OrderedDict(pairs) if isinstance(value, OrderedDict) else dict(pairs)
    kind = type(value)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return kind(mapped(part, change) for part in value)
    return change(value)


def check_kinds(value: object, is_tensor: Callable[[object], bool], where: str) -> None:
    """Check that a tree has only tensors and values of the kinds that files keep.

    Raises:
        UnsupportedArchitectureError: It has another kind of value, or nests too deeply. The message names the place.
    """
    pending: list[tuple[object, Callable[[], str], int]] = [(value, lambda: where, 0)]  # each with its place in words
    while pending:
        part, place, depth = pending.pop()
        kind = type(part)
        if kind in _LEAVES or is_tensor(part):
            continue
        if kind not in _CONTAINERS:
            module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            raise UnsupportedArchitectureError(
                f"{place()}: found a {module}{kind.__qualname__}, which cannot be saved. Use a plain number, text, "
                "list or dict."
            )
        if depth > MAX_DEPTH:
            raise UnsupportedArchitectureError(f"{where}: it nests more than {MAX_DEPTH} levels deep. Make it flatter.")
        pending += _parts(part, place, depth + 1)


def _parts(value: object, place: Callable[[], str], depth: int) -> Iterator[tuple[object, Callable[[], str], int]]:
    """Yield what a container holds. Places become words only for a message: there are many, and they are long."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield item, partial(_below, place, key), depth
            yield key, lambda: f"a key of {place()}", depth
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield item, partial(_below, place, index), depth
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield item, lambda: f"an item of {place()}", depth


def _below(place: Callable[[], str], key: object) -> str:
    return f"{place()}[{shown(key, 60)}]"


def has_at_most(value: object, most: int) -> bool:
    """Return whether a tree has at most `most` values, each counted at every mention."""
    pending: list[object] = [value]
    seen = 1
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            seen += 2 * len(part)
            pending += part.keys()
            pending += part.values()
        elif isinstance(part, (list, tuple, set, frozenset)) and not isinstance(part, torch.Size):
            seen += len(part)
            pending += part
        if seen > most:
            return False
    return True


def canonical(value: Any, tensor: Callable[[Any], object]) -> object:
    """Return a form of a tree that equals the form of another tree with the same values and types in the same order.

    NaN equals a NaN of the same bits, and -0.0 differs from 0.0.

    Args:
        value: A tree of the kinds that `check_kinds` allows.
        tensor: Returns what represents a tensor.
    """
    kind = type(value)
    if isinstance(value, dict):
        return kind.__name__, tuple((canonical(key, tensor), canonical(part, tensor)) for key, part in value.items())
    if kind is list or kind is tuple:
        return kind.__name__, tuple(canonical(part, tensor) for part in value)
    if kind is set or kind is frozenset:
        return kind.__name__, frozenset(Counter(canonical(part, tensor) for part in value).items())
    if kind is float:
        return "float", struct.pack(">d", value)
    if kind in _LEAVES:
        return kind.__name__, bytes(value) if kind is bytearray else value
    return "tensor", tensor(value)
