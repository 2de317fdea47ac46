"""Check the values of JSON files, which other programs may have changed, against dataclasses."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal

_MAX_INT = 1 << 63


def problem_of(kind: type, values: Any) -> str:
    """Return the first field of a dataclass whose value is missing or of another type, with the value; "" if none.

    An int is a count from 0 to 63 bits, a float may be an int of 63 bits, and a tuple may be a list.
    """
    if not isinstance(values, dict):
        return f"expected a mapping, got {type(values).__name__}"
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name not in values:
            return f"{field.name!r} is missing"
        if not _fits(values[field.name], hints[field.name]):
            return f"{field.name!r} is {json.dumps(values[field.name], default=str)[:80]}"
    return ""


def _fits(value: object, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in args)
    if origin is Literal:
        return value in args
    if origin is list:
        return isinstance(value, list) and all(_fits(each, args[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, args[1]) for each in value.values())
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(args) and all(map(_fits, value, args))
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < _MAX_INT)
    if hint is int:
        return type(value) is int and 0 <= value < _MAX_INT
    return hint in (Any, object) or type(value) is hint
