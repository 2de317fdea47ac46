"""Names of the places that a wrapper can surround."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    APPLY_MODEL = "apply_model"


class Executor:
    """The rest of the wrappers, and in the end the function; `class_obj` is its object."""

    def __init__(self, function: Callable[..., Any], class_obj: object, wrappers: list[Callable[..., Any]]) -> None:
        self.function, self.class_obj, self.wrappers = function, class_obj, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.function(*args, **kwargs)
        rest = Executor(self.function, self.class_obj, self.wrappers[1:])
        return self.wrappers[0](rest, *args, **kwargs)


def wrapped(kind: str, function: Callable[..., Any], class_obj: object, options: dict[str, Any]) -> Executor:
    """Return a function within the wrappers in `transformer_options`."""
    keyed = options.get("wrappers", {}).get(kind, {})
    return Executor(function, class_obj, [each for wrappers in keyed.values() for each in wrappers])
