"""Plot the results, as SVG for the documentation and as PNG."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hnloader.files import replacing

COLORS = {
    "hnloader": "#1668b3",
    "hnloader, exact=True": "#7fb2e0",
    "hnloader, one of them": "#b9d6f0",
    "hnloader, new text each step": "#0f4c81",
    "arithmetic alone": "#c9b037",
    "bare model, second copy": "#dddddd",
    "live hooks": "#d1702d",
    "webui's way": "#a8a29a",
    "LoRA, rank 16": "#5c9e6f",
    "hnloader, linear file": "#6b4fa0",
}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "hnloader",  # reproducible IDs
}


def save(figure: Figure, stem: Path) -> None:
    """Write `stem.svg` and `stem.png` with a white background, which is readable on dark pages too."""
    for suffix, extra in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 150})):
        with replacing(stem.with_suffix(suffix)) as temporary:
            figure.savefig(temporary, format=suffix[1:], facecolor="white", bbox_inches="tight", **extra)
    pyplot.close(figure)


def step_time(results: Sequence[Mapping[str, Any]], stem: Path) -> None:
    """Plot the added time of each way and file as bars with quartiles, in a panel for each model."""
    models = list(dict.fromkeys(result["model"] for result in results))
    with pyplot.rc_context(_STYLE):
        columns = min(2, len(models))
        lines = -(-len(models) // columns)
        figure, panels = pyplot.subplots(lines, columns, figsize=(6.4 * columns, 3.2 * lines), squeeze=False)
        for panel, model in zip(panels.flat, models, strict=False):
            _bars(panel, [result for result in results if result["model"] == model])
            panel.set_title(model, fontsize=9, loc="left")
        for panel in list(panels.flat)[len(models) :]:
            panel.set_visible(False)
        _legend(figure, panels.flat)
        figure.tight_layout()
        save(figure, stem)


def _bars(panel: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    places, names = [], []
    left = 0.0
    for result in results:
        ways = [way for way in result["ways"] if way != "bare model"]
        for number, way in enumerate(ways):
            median, low, high = ((value - 1) * 100 for value in result["ways"][way]["ratio"])
            spread = [[max(median - low, 0)], [max(high - median, 0)]]
            panel.bar(left + number, median, 0.9, color=COLORS.get(way, "#888888"), label=way)
            panel.errorbar(left + number, median, spread, color="#333333", linewidth=0.8, capsize=2)
        places.append(left + (len(ways) - 1) / 2)
        names.append(result["file"].replace(", ", ",\n"))
        left += len(ways) + 1
    panel.axhline(0, color="#333333", linewidth=0.8)
    panel.set_xticks(places, names, fontsize=7)
    panel.grid(axis="x", visible=False)
    panel.set_ylabel("added to a bare step (%)")


def _legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """Add one legend for all panels."""
    shown: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    figure.legend(
        list(shown.values()), list(shown), loc="lower center", ncols=4, bbox_to_anchor=(0.5, 1), frameon=False
    )


def growth(cells: Sequence[Mapping[str, Any]], stem: Path) -> None:
    """Plot time and memory in two rows of panels, with a column for each axis and marks where plans change."""
    axes = list(dict.fromkeys(cell["axis"] for cell in cells))
    with pyplot.rc_context(_STYLE):
        figure, panels = pyplot.subplots(2, len(axes), figsize=(3.4 * len(axes), 5.6), squeeze=False)
        for column, axis in enumerate(axes):
            along = [cell for cell in cells if cell["axis"] == axis]
            _growth_of_time(panels[0][column], along)
            _growth_of_memory(panels[1][column], along)
            panels[1][column].set_xlabel(axis)
        panels[0][0].set_ylabel("step / bare step")
        panels[1][0].set_ylabel("memory above the file (MB)")
        _legend(figure, panels.flat)
        figure.tight_layout()
        save(figure, stem)


def _growth_of_time(panel: Axes, along: Sequence[Mapping[str, Any]]) -> None:
    places = [cell["value"] for cell in along]
    for way in [way for way in along[0]["ratio"] if way != "bare model"]:
        spreads = [cell["ratio"][way] for cell in along]
        panel.plot(places, [spread[0] for spread in spreads], label=way, **_line(way))
        low, high = [spread[1] for spread in spreads], [spread[2] for spread in spreads]
        panel.fill_between(places, low, high, color=_line(way)["color"], alpha=0.15, linewidth=0)
    panel.axhline(1, color="#333333", linewidth=0.8)
    _places(panel, places)
    for before, after in itertools.pairwise(along):
        if before["plans"] != after["plans"]:
            middle = (before["value"] * after["value"]) ** 0.5
            panel.axvline(middle, color="#333333", linestyle=":", linewidth=1)
            changed = [f"{kind}:\n{plan}" for kind, plan in after["plans"].items() if plan != before["plans"][kind]]
            panel.annotate(
                "\n".join(changed),
                (middle, 0.98),
                xycoords=("data", "axes fraction"),
                fontsize=6,
                va="top",
                ha="center",
            )


def _growth_of_memory(panel: Axes, along: Sequence[Mapping[str, Any]]) -> None:
    places = [cell["value"] for cell in along]
    for way in along[0]["memory"]:
        panel.plot(places, [cell["memory"][way] / 1e6 for cell in along], **_line(way))
    panel.axhline(0, color="#333333", linewidth=0.8)
    _places(panel, places)


def _line(way: str) -> dict[str, Any]:
    """Return the style of a line: solid for hnloader, dashed for hooks, a color for each kind of file."""
    colors = {"hnloader, relu": "#1668b3", "hnloader, linear": "#6b4fa0", "live hooks, relu": "#d1702d"}
    color = colors.get(way, "#d1a02d" if way.startswith("live") else "#5c9e6f")
    return {"color": color, "marker": "o", "markersize": 3, "linestyle": "--" if way.startswith("live") else "-"}


def _places(panel: Axes, places: Sequence[float]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(places, [f"{place:g}" for place in places])
    panel.minorticks_off()
