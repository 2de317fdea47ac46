"""Axes of the host's XYZ plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hnloader.errors import HypernetworkError

from .runtime import Extension

LABELS = ("Hypernetwork", "Hypernetwork strength", "Hypernetwork start", "Hypernetwork end")
_NONE = "None"


def register(extension: Extension) -> None:
    """Add the axes before the page is built, when the plot's script has been loaded in any case."""
    from modules import script_callbacks

    script_callbacks.on_before_ui(lambda: add_axes(extension))


def add_axes(extension: Extension) -> None:
    """Add the axes to the plot, in the place of those of an earlier call. Without a plot there is nothing to do."""
    plot = _plot()
    if plot is not None:
        others = [option for option in plot.axis_options if option.label not in LABELS]
        plot.axis_options[:] = [*others, *_axes(extension, plot.AxisOption)]


def _plot() -> ModuleType | None:
    from modules import scripts

    for data in scripts.scripts_data:
        if Path(data.path).name == "xyz_grid.py" and hasattr(data.module, "axis_options"):
            module: ModuleType = data.module
            return module
    return None


def _axes(extension: Extension, axis: Callable[..., Any]) -> list[Any]:
    def apply(field: str) -> Callable[[Any, float, Any], None]:
        return lambda p, x, xs: extension.applier.override(p, **{field: _rounded(x)})

    def apply_name(p: Any, x: str, xs: Any) -> None:
        extension.applier.override(p, name="" if x == _NONE else x)

    def confirm_names(p: Any, xs: list[str]) -> None:
        for name in xs:
            if name != _NONE:
                _known(extension, name)

    def choices() -> list[str]:
        return [_NONE, *extension.names()]

    name, strength, start, end = LABELS
    return [
        # A change of the hypernetwork reads a file: the plot then draws these images in a row.
        axis(name, str, apply_name, confirm=confirm_names, choices=choices, cost=0.3),
        axis(strength, float, apply("strength")),
        axis(start, float, apply("start"), confirm=_confirm_within(start, lambda x: 0 <= x < 1, "0 <= start < 1")),
        axis(end, float, apply("end"), confirm=_confirm_within(end, lambda x: 0 < x <= 1, "0 < end <= 1")),
    ]


def _known(extension: Extension, name: str) -> None:
    """The plot stops before its first image, and shows this error."""
    try:
        extension.find(name)
    except HypernetworkError as error:
        raise RuntimeError(str(error)) from None


def _confirm_within(label: str, fits: Callable[[float], bool], range_: str) -> Callable[[Any, list[float]], None]:
    def confirm(p: Any, xs: list[float]) -> None:
        for x in xs:
            if not fits(_rounded(x)):
                raise RuntimeError(f"{label}: {x} is no fraction of the sampling with {range_}.")

    return confirm


def _rounded(x: float) -> float:
    """The plot counts ranges such as `0.1-1(+0.1)` in steps, which can end at 1.0000000000000002."""
    return round(x, 8)
