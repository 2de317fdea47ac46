"""Axes of the X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hnloader.errors import HypernetworkError

from .core import Extension
from .hosts.protocol import Axis, PlotsAxes

_NONE = "None"


def register(extension: Extension, host: PlotsAxes) -> None:
    """Add the axes to the webui's plot."""
    host.add_axes(axes(extension))


def axes(extension: Extension) -> list[Axis]:
    """Return the axes. Changing the hypernetwork reads a file, so the plot does it least often."""

    def apply(field: str) -> Callable[[Any, float], None]:
        return lambda job, value: extension.applier.override(job, **{field: _rounded(value)})

    def apply_name(job: Any, name: str) -> None:
        extension.applier.override(job, name="" if name == _NONE else name)

    def check_name(name: str) -> None:
        try:
            if name != _NONE:
                extension.library.find(name)
        except HypernetworkError as error:
            raise RuntimeError(str(error)) from None

    def check_start(start: float) -> None:
        if not 0 <= _rounded(start) < 1:
            raise RuntimeError(f"Hypernetwork start: got {start}. Use a fraction from 0 up to, but not including, 1.")

    def check_end(end: float) -> None:
        if not 0 < _rounded(end) <= 1:
            raise RuntimeError(f"Hypernetwork end: got {end}. Use a fraction above 0, up to 1.")

    return [
        Axis("Hypernetwork", str, apply_name, check_name, lambda: [_NONE, *extension.library.names()], cost=0.3),
        Axis("Hypernetwork strength", float, apply("strength")),
        Axis("Hypernetwork start", float, apply("start"), check_start),
        Axis("Hypernetwork end", float, apply("end"), check_end),
    ]


def _rounded(value: float) -> float:
    """Undo the plot's float error: a range such as `0.1-1(+0.1)` can end at 1.0000000000000002."""
    return round(value, 8)
