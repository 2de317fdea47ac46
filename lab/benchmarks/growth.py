"""Measure how time and memory grow with the hidden width, the number of files, the resolution and the batch.

    python -m lab.benchmarks.growth [--quick] [--threads N] [--results FOLDER]

The model has one transformer block for each level of SD 1 at its real width; a hypernetwork weighs more there than in a
whole UNet. Each cell has relu files, linear files, and linear files without folding, each with hnloader and with live
hooks. Prints Markdown.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hnloader.network import Architecture
from lab.benchmarks import _files, _models, _options, _plots, _report, _ways
from lab.benchmarks._measure import Rounds, memory_of, take_turns
from lab.benchmarks._models import Subject
from lab.benchmarks._report import Target

BARE = "bare model"


@dataclass(frozen=True)
class Kind:
    """A kind of file and how it is attached.

    Attributes:
        activation: Activation of the hidden layers.
        fold: True if it may be folded into the weights of the model.
        hooks: Name of the way with live hooks for such files.
    """

    activation: str | None
    fold: bool
    hooks: str


KINDS = {
    "relu": Kind("relu", True, "live hooks, relu"),
    "linear": Kind(None, True, "live hooks, linear"),
    "linear, not folded": Kind(None, False, "live hooks, linear"),
}
# Values of the axes that do not grow.
USUAL: dict[str, float] = {"hidden width": 2, "files": 1, "latents": 64, "batch": 1}
AXES: dict[str, tuple[float, ...]] = {
    "hidden width": (0.25, 1, 2, 4, 8),
    "files": (1, 2, 4, 8),
    "latents": (32, 64, 96, 128),
    "batch": (1, 2, 4, 8),
}


@dataclass(frozen=True)
class Cell:
    """One point of one axis.

    Attributes:
        axis: A key of `AXES`.
        value: Value on the axis.
        rounds: The times.
        memory: Peak bytes of tensors by way, without the bare model and the file.
        plans: The plans of hnloader for each kind of file.
    """

    axis: str
    value: float
    rounds: Rounds
    memory: dict[str, int]
    plans: dict[str, str]

    def to_json(self) -> dict[str, object]:
        return {
            "axis": self.axis,
            "value": self.value,
            "plans": self.plans,
            "memory": self.memory,
            "seconds": {way: self.rounds.seconds(way).to_json() for way in self.rounds.samples},
            "ratio": {way: self.rounds.ratio(way, BARE).to_json() for way in self.rounds.samples},
        }


def ours(kind: str) -> str:
    """Return the name of hnloader's way."""
    return f"hnloader, {kind}"


def measure(subject: Subject, axis: str, value: float, seconds: float, *, width: float, files: int) -> Cell:
    """Measure one cell: `files` in a chain, with hidden layers `width` times as wide as the context."""
    steps: dict[str, Callable[[], Tensor]] = {BARE: subject.step(subject.copy())}
    kept: dict[str, int] = {}
    plans = {}
    for name, kind in KINDS.items():
        made = _files.hypernetworks(Architecture((1, width, 1), kind.activation), subject.widths, files)
        if kind.hooks not in steps:
            model = subject.copy()
            _ways.live_hooks(model, made)
            steps[kind.hooks] = subject.step(model)
        model = subject.copy()
        steps[ours(name)] = subject.step(model)
        attach = _ways.Attaching(model, made, fold=kind.fold)
        kept[ours(name)] = memory_of(attach).kept + memory_of(steps[ours(name)]).kept
        plans[name] = _ways.plans(attach.attachment)
    rounds = take_turns(steps, seconds=seconds, most=9)
    peaks = {way: memory_of(step).peak + kept.get(way, 0) for way, step in steps.items()}
    memory = {way: peak - peaks[BARE] for way, peak in peaks.items() if way != BARE}
    return Cell(axis, value, rounds, memory, plans)


def cells(axes: dict[str, tuple[float, ...]], seconds: float, make: Callable[[int, int], Subject]) -> Iterable[Cell]:
    """Measure every cell of every axis; `make` returns the model for a latent size and a batch."""
    for axis, values in axes.items():
        for value in values:
            point = {**USUAL, axis: value}
            subject = make(int(point["latents"]), int(point["batch"]))
            print(f"... {axis} {value:g}", file=sys.stderr, flush=True)
            yield measure(subject, axis, value, seconds, width=point["hidden width"], files=int(point["files"]))
            gc.collect()


def growth_table(found: Sequence[Cell]) -> str:
    """Return a table with a row for each cell and kind of file."""
    rows = []
    for cell in found:
        for kind in KINDS:
            rounds = cell.rounds
            rows.append(
                [
                    f"{cell.axis} {cell.value:g}" if kind == "relu" else "",
                    kind,
                    cell.plans[kind],
                    _report.duration(rounds.seconds(BARE).median),
                    _report.with_spread(rounds.ratio(KINDS[kind].hooks, BARE)),
                    _report.with_spread(rounds.ratio(ours(kind), BARE)),
                    _report.with_spread(rounds.ratio(ours(kind), KINDS[kind].hooks)),
                    _report.megabytes(cell.memory[KINDS[kind].hooks]),
                    _report.megabytes(cell.memory[ours(kind)]),
                ]
            )
    headers = ["", "file", "plans", "bare step", "live hooks", "hnloader", "to hooks", "memory, hooks", "hnloader"]
    return _report.table(headers, rows, words=3)


def targets(found: Sequence[Cell]) -> list[Target]:
    """Return the target for each kind of file: even its slowest cell is faster than live hooks."""
    listed = []
    for kind in KINDS:
        ratios = [(cell.rounds.ratio(ours(kind), KINDS[kind].hooks), f"{cell.axis} {cell.value:g}") for cell in found]
        slowest, where = max(ratios, key=lambda each: each[0].median)
        listed.append(Target(f"{kind}: slowest cell, relative to live hooks", where, slowest, 1))
    return listed


def main() -> None:
    options = _options.parse(__doc__)
    quick: dict[str, tuple[float, ...]] = {"hidden width": (0.25, 1), "latents": (16, 32)}
    axes = quick if options.quick else AXES
    print(f"\n### Growth: {_models.blocks(64, 1).title}\n", flush=True)
    usual = ", ".join(f"{axis} {value:g}" for axis, value in USUAL.items())
    found = list(cells(axes, 0.5 if options.quick else 8, _models.blocks))
    print(f"Other values: {usual}. Ratios are relative to the bare step, medians with quartiles.\n")
    print(growth_table(found))
    goals = targets(found)
    print(f"\n### Targets of growth\n\n{_report.target_table(goals)}")
    content = {
        "machine": _report.machine(),
        "cells": [cell.to_json() for cell in found],
        "targets": [goal.to_json() for goal in goals],
    }
    _report.save_json(options.results, "growth", content)
    if options.results is not None:
        _plots.growth([cell.to_json() for cell in found], options.results / "speed-growth")


if __name__ == "__main__":
    main()
