"""Show values from untrusted files as text that is bounded in length, time and memory.

`str` and `repr` of such a value are unbounded: a text of a megabyte that a list mentions 3,000 times becomes 3 GB,
nested lists that share their parts never end, and the digits of a large integer raise ValueError.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["all_well_formed", "as_text", "plain", "shown", "takes", "well_formed", "without_folders"]

_LONGEST = 80
_ELLIPSIS = "…"
# Nested containers; deeper ones are omitted.
_DEEPEST = 8
_DEEPEST_PLAIN = 64
_LONGEST_PLAIN = 200
_LARGEST_INT = 2048  # bits; more digits take long, and Python can have a limit of 640 digits
_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}")}


def shown(value: object, limit: int = _LONGEST) -> str:
    """Return the `repr` of a plain value, or a few words about another object, cut off after `limit` characters."""
    writer = _Writer(limit)
    writer.value(value, 0)
    return writer.text()


def as_text(value: object, limit: int = _LONGEST) -> str:
    """Return a text or path itself, the message of an exception, or `shown` of others; at most `limit` characters."""
    if isinstance(value, BaseException):
        return _message(value, limit)
    if isinstance(value, os.PathLike):
        return _cut(str(os.fspath(value)), limit)
    return _cut(value, limit) if isinstance(value, str) else shown(value, limit)


def plain(value: object, room: int) -> object:
    """Return a value for JSON, with at most `room` characters of text and `room` values in total.

    Values that JSON lacks become text. An ellipsis marks omitted parts.
    """
    return _Copier(room).copy(value, 0)


def takes(value: object, room: int) -> bool:
    """Return whether a value has at most `room` characters, bytes, digits and values, counted at each mention."""
    copier = _Copier(room, whole=True)
    copier.copy(value, 0)
    return copier.left > 0


def without_folders(text: str, folders: Iterable[Path | str]) -> str:
    """Shorten the paths in a text to their part below these folders."""
    for folder in sorted(map(str, folders), key=len, reverse=True):  # one folder can contain another
        text = text.replace(folder.rstrip(os.sep) + os.sep, "").replace(folder, Path(folder).name)
    return text


def well_formed(text: str) -> str:
    r"""Return `text` with each lone surrogate as Python's escape for it, such as `\udcff`.

    Names of files that are not UTF-8, and texts in pickles and JSON, can hold surrogates. UTF-8 text cannot.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def all_well_formed(value: object) -> object:
    """Return plain values with all texts in them `well_formed`, including keys; other objects stay unchanged."""
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
    """The text has reached its limit."""


class _Writer:
    """Writes up to `limit` characters. Each value writes at least one, which bounds the time too."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._parts: list[str] = []

    def text(self) -> str:
        return _cut("".join(self._parts), self._limit)

    def write(self, text: str) -> None:
        """Add text. Raises _FullError if it does not fit."""
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
            # `write` cuts off a part that is too long by one, with its closing quote.
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
    """Copies until the room is used. Each value takes some, which bounds shared values too."""

    def __init__(self, room: int, *, whole: bool = False) -> None:
        """`whole`: a value that is shown in part takes the room of the whole value."""
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
    """Describe an object of another class by bounded attributes."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        sizes = ", ".join(map(str, tuple(shape)[:16]))
        return f"tensor {str(dtype).removeprefix('torch.')[:20]} [{sizes}]"
    return f"<{type(value).__name__}>"
