"""Text of what strangers' files hold, bounded in length, time and memory.

`str` and `repr` of a stranger's value have no bound: a text of a megabyte that a list mentions 3,000 times becomes
3 GB, lists within lists that share their parts never end, and the digits of a large integer raise ValueError.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping

_LONGEST = 80
_ELLIPSIS = "…"
# Containers within each other; what lies deeper is left out.
_DEEPEST = 8
_DEEPEST_PLAIN = 64
_LONGEST_PLAIN = 200
_LARGEST_INT = 2048  # bits; the digits of more take long, and Python can be told to write no more than 640
_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}")}


def shown(value: object, limit: int = _LONGEST) -> str:
    """Return a value as `repr` writes it, cut off after `limit` characters.

    Tensors, exceptions and objects of other classes are named in a few words.
    """
    writer = _Writer(limit)
    writer.value(value, 0)
    return writer.text()


def as_text(value: object, limit: int = _LONGEST) -> str:
    """Return a text or a path itself, the message of an exception, others as `shown`; at most `limit` characters."""
    if isinstance(value, BaseException):
        return _message(value, limit)
    if isinstance(value, os.PathLike):
        return _cut(str(os.fspath(value)), limit)
    return _cut(value, limit) if isinstance(value, str) else shown(value, limit)


def plain(value: object, room: int) -> object:
    """Return a value as JSON can hold it, with at most `room` characters of text and `room` values in all of it.

    What JSON lacks becomes text as `shown` writes it. What finds no room is left out, which an ellipsis says.
    """
    return _Copier(room).copy(value, 0)


def takes(value: object, room: int) -> bool:
    """Tell whether a value has at most `room` characters, bytes, digits and values in it, each mention counted."""
    copier = _Copier(room, whole=True)
    copier.copy(value, 0)
    return copier.left > 0


def well_formed(text: str) -> str:
    r"""Return `text` with each lone surrogate as Python's escape for it, such as `\udcff`.

    Names of files that are not UTF-8, and texts in pickles and JSON, can hold surrogates, which no UTF-8 text can.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def all_well_formed(value: object) -> object:
    """Return plain values with all texts in them `well_formed`, keys included; other objects stay what they are."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {all_well_formed(key): all_well_formed(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        made = [all_well_formed(part) for part in value]  # type: ignore[attr-defined]
        return made if isinstance(value, list) else tuple(made)
    return value


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + _ELLIPSIS


def _message(error: BaseException, limit: int) -> str:
    if isinstance(error, OSError) and error.strerror:
        return _cut(error.strerror, limit)
    args = error.args
    if len(args) == 1 and isinstance(args[0], str) and not isinstance(error, KeyError):
        return _cut(args[0], limit)
    return shown(args[0], limit) if args else type(error).__name__


class _FullError(Exception):
    """There is no room for more."""


class _Writer:
    """Writes until `limit` characters are there; each value writes one at least, so that the time has a bound too."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._parts: list[str] = []

    def text(self) -> str:
        return _cut("".join(self._parts), self._limit)

    def write(self, text: str) -> None:
        """Raise _FullError where it does not fit."""
        if len(text) > self._left:
            self._parts.append(text[: self._left + 1])
            raise _FullError
        self._left -= len(text)
        self._parts.append(text)

    def value(self, value: object, depth: int) -> None:
        try:
            self._value(value, depth)
        except _FullError:
            if depth:
                raise

    def _value(self, value: object, depth: int) -> None:
        if value is None or isinstance(value, (bool, float)):
            self.write(repr(value))
        elif isinstance(value, int):
            self.write(repr(value) if value.bit_length() <= _LARGEST_INT else f"<int of {value.bit_length():,} bits>")
        elif isinstance(value, (str, bytes, bytearray)):
            # A part that is too long by one is cut off by `write`; its quote is not closed then.
            part = repr(value[: self._left + 1])
            self.write(part if len(value) <= self._left else part[: self._left + 1])
        elif isinstance(value, BaseException):
            self.write(_message(value, self._left + 1))
        elif isinstance(value, (list, tuple, set, frozenset, Mapping)):
            self._container(value, depth)
        else:
            self.write(_described(value))

    def _container(self, value: Iterable[object], depth: int) -> None:
        opening, closing = _BRACKETS.get(type(value), ("{", "}"))
        if depth >= _DEEPEST:
            self.write(f"{opening}{_ELLIPSIS}{closing}")
            return
        self.write(opening)
        for number, part in enumerate(value):
            self.write(", " if number else "")
            self.value(part, depth + 1)
            if isinstance(value, Mapping):
                self.write(": ")
                self.value(value[part], depth + 1)
        self.write(",)" if isinstance(value, tuple) and len(value) == 1 else closing)


class _Copier:
    """Copies until there is no room; each value takes some, so that what is shared has an end too."""

    def __init__(self, room: int, *, whole: bool = False) -> None:
        """`whole`: What is only shown takes the room of all of it."""
        self.left = room
        self._whole = whole

    def copy(self, value: object, depth: int) -> object:
        self.left -= 1
        if self.left <= 0 or depth > _DEEPEST_PLAIN:
            self.left = 0
            return _ELLIPSIS
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            text = _cut(value, self.left)
            self.left -= len(text)
            return text
        if isinstance(value, int) and value.bit_length() <= _LARGEST_INT:
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, Mapping):
            made: dict[str, object] = {}
            for key, part in value.items():
                if self.left <= 0:
                    made[_ELLIPSIS] = _ELLIPSIS
                    break
                name = self.copy(key, depth + 1) if isinstance(key, str) or self._whole else shown(key)
                made[name if isinstance(name, str) else shown(name)] = self.copy(part, depth + 1)
            return made
        if isinstance(value, (list, tuple, set, frozenset)):
            parts = []
            for part in value:
                parts.append(self.copy(part, depth + 1))
                if self.left <= 0:
                    break
            return parts
        if self._whole:
            self.left -= len(value) if isinstance(value, (bytes, bytearray)) else 0
            self.left -= value.bit_length() // 3 if isinstance(value, int) else 0
        return self.copy(as_text(value, _LONGEST_PLAIN), depth)


def _described(value: object) -> str:
    """An object of a class of its own, by attributes that have a bound."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        sizes = ", ".join(map(str, tuple(shape)[:16]))
        return f"tensor {str(dtype).removeprefix('torch.')[:20]} [{sizes}]"
    return f"<{type(value).__name__}>"
