"""What a file's pickle or header holds besides tensors: dicts, lists and tuples within each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with all that its dicts, lists and tuples hold, however deep, as `change` gives it, in new containers.

    What is none of these, or a list or tuple of a class of its own, is given to `change` whole.
    """
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(part, change) for part in value)
    return change(value)
