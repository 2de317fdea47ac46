"""Time steps of a model with several files, each in several ways, all in turns."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lab.benchmarks import _arithmetic, _report, _ways
from lab.benchmarks._files import Case
from lab.benchmarks._measure import Rounds, Spread, take_turns
from lab.benchmarks._models import Subject
from lab.benchmarks._ways import Way

BARE, AGAIN, OURS, ONE, NEW_TEXT, WINDOW, EXACT, HOOKS, WEBUI, LORA, LEAST = (
    "bare model",
    "bare model, second copy",
    "hnloader",
    "hnloader, one of them",
    "hnloader, new text each step",
    "hnloader, in a window",
    "hnloader, exact=True",
    "live hooks",
    "webui's way",
    f"LoRA, rank {_ways.LORA_RANK}",
    "arithmetic alone",
)
WAYS: dict[str, Way] = {
    BARE: _ways.bare,
    AGAIN: _ways.bare,
    OURS: _ways.ours,
    ONE: _ways.ours,
    NEW_TEXT: _ways.ours,
    WINDOW: _ways.ours_in_window,
    EXACT: _ways.ours_exact,
    HOOKS: _ways.live_hooks,
    WEBUI: _ways.webui,
    LORA: _ways.lora,
    LEAST: _ways.arithmetic,
}
_WITH_OTHER_OUTPUT = (HOOKS, ONE, LORA, LEAST, AGAIN)


@dataclass(frozen=True)
class Group:
    """A kind of file and its ways, in the order of the table. All groups share the bare model and its second copy."""

    case: Case
    ways: tuple[str, ...] = (HOOKS, OURS)


@dataclass(frozen=True)
class Result:
    """The measurements of a group on a model.

    Attributes:
        where: The model's title.
        group: The file and the ways.
        rounds: The times.
        arithmetic: The multiply-adds of the file.
        errors: Largest difference of each output from the live hooks, relative to the largest value. For the bare
            model, it is the effect of the file.
    """

    where: str
    group: Group
    rounds: Rounds
    arithmetic: _arithmetic.Arithmetic
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def least(self) -> float | None:
        """Return the step of the arithmetic alone, relative to a bare step, if it was measured."""
        return self.rounds.ratio(LEAST, BARE).median if LEAST in self.group.ways else None

    def share(self, way: str = OURS) -> Spread:
        """Return the time that a way adds, relative to the hooks."""
        return self.rounds.share(way, HOOKS, BARE)

    def to_json(self) -> dict[str, object]:
        ways = {
            way: {
                "seconds": self.rounds.seconds(way).to_json(),
                "ratio": self.rounds.ratio(way, BARE).to_json(),
                "cpu_ratio": self.rounds.cpu_ratio(way, BARE).to_json(),
                "share": self.share(way).to_json() if HOOKS in self.group.ways else None,
                "difference": self.errors.get(way),
            }
            for way in (BARE, AGAIN, *self.group.ways)
        }
        return {
            "model": self.where,
            "file": self.group.case.title,
            "rounds": self.rounds.count,
            "ways": ways,
            "multiply_adds": {"live": self.arithmetic.live, "needed": self.arithmetic.needed},
        }


@dataclass(frozen=True)
class Effort:
    """Limits on the time and the rounds of a measurement.

    Attributes:
        seconds: Seconds of each set of copies after which no round starts.
        sets: Number of sets of copies.
        least: Minimum number of rounds of each set.
        most: Maximum number of rounds of each set.
        burst: Steps in succession; their median is one sample.
        warm_up: Uncounted steps of each copy.
    """

    seconds: float
    sets: int = 1
    least: int = 3
    most: int = 15
    burst: int = 1
    warm_up: int = 1


def measure(subject: Subject, groups: Sequence[Group], effort: Effort) -> list[Result]:
    """Time all groups on a model in the same rounds.

    Every way has a copy of the model with its own projections; the other weights are shared.
    """
    files = {group: group.case.make(subject) for group in groups}
    outputs: dict[tuple[Group | None, str], Tensor] = {}

    def step_of(group: Group | None, way: str) -> Callable[[], None]:
        model = subject.copy()
        chain = files[group] if group is not None else []
        WAYS[way](model, chain[:1] if way == ONE else chain)
        step = subject.step(model, new_text=way == NEW_TEXT)
        return lambda: outputs.update({(group, way): step()})

    def rounds_of_a_set() -> Rounds:
        places = [(None, BARE), (None, AGAIN), *[(group, way) for group in groups for way in group.ways]]
        random.shuffle(places)  # the first copy is faster than the others
        steps = {_name(*place): step_of(*place) for place in places}
        gc.collect()
        return take_turns(
            steps,
            seconds=effort.seconds,
            least=effort.least,
            most=effort.most,
            warm_up=effort.warm_up,
            burst=effort.burst,
        )

    rounds = Rounds.joined([rounds_of_a_set() for _ in range(effort.sets)])
    results = []
    for group in groups:
        names = {BARE: BARE, AGAIN: AGAIN, **{way: _name(group, way) for way in group.ways}}
        errors = {}
        if HOOKS in group.ways:
            reference = outputs[group, HOOKS].float()
            compared = {BARE: outputs[None, BARE], **{way: outputs[group, way] for way in group.ways}}
            errors = {
                way: _difference(output.float(), reference)
                for way, output in compared.items()
                if way not in _WITH_OTHER_OUTPUT
            }
        arithmetic = _arithmetic.of_step(replace(subject, compiled=False), files[group])
        results.append(Result(subject.title, group, rounds.renamed(names), arithmetic, errors))
    return results


def calls_without_layers(subject: Subject, case: Case, rounds: int) -> Rounds:
    """Time calls of a model whose own forward is empty after the first steps, to show the work around a call.

    Whole steps are too noisy to show a difference of some microseconds.
    """
    files = case.make(subject)

    def call_of(way: str) -> Callable[[], object]:
        model = subject.copy()
        WAYS[way](model, files)
        step = subject.step(model)
        output = (step(), step())
        model.forward = lambda **_: output
        return step

    return take_turns({way: call_of(way) for way in (BARE, OURS, WINDOW)}, seconds=60, most=rounds, burst=101)


def _name(group: Group | None, way: str) -> str:
    return way if group is None else f"{group.case.title}: {way}"


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


# -- what is printed


def model_table(results: Sequence[Result]) -> str:
    """Return the table of one model."""
    first = results[0].rounds
    rows = [
        ["", BARE, _report.duration(first.seconds(BARE).median), "", "", "", ""],
        ["", AGAIN, *_times(first, AGAIN), "", ""],
    ]
    for result in results:
        for place, way in enumerate(result.group.ways):
            shared = "" if way == HOOKS or HOOKS not in result.group.ways else f"{result.share(way).median:.2f}"
            error = result.errors.get(way)
            rows.append(
                [
                    result.group.case.title if place == 0 else "",
                    way,
                    *_times(result.rounds, way),
                    shared,
                    "" if error is None else f"{error:.0e}",
                ]
            )
    headers = ["file", "way", "one step", "/ bare (quartiles)", "CPU time", "added / hooks", "difference"]
    return _report.table(headers, rows, words=2)


def _times(rounds: Rounds, way: str) -> list[str]:
    return [
        _report.duration(rounds.seconds(way).median),
        _report.with_spread(rounds.ratio(way, BARE), 3),
        f"{rounds.cpu_ratio(way, BARE).median:.3f}",
    ]


def arithmetic_table(results: Sequence[Result]) -> str:
    """Return a table with the multiply-adds of each file on a model, and the time that each way adds."""
    rows = [
        [
            result.group.case.title,
            f"{result.arithmetic.live / 1e9:.2f} G",
            f"{result.arithmetic.needed / 1e9:.2f} G",
            *[
                _report.duration(result.rounds.excess(way, BARE)) if way in result.group.ways else ""
                for way in (LEAST, HOOKS, OURS)
            ],
        ]
        for result in results
    ]
    headers = ["file", "multiply-adds", "unavoidable", "arithmetic adds", "hooks add", "hnloader adds"]
    return _report.table(headers, rows)
