"""Time a step of a UNet with hypernetworks: hnloader and other ways, in the same run.

    python -m lab.benchmarks.step_time [--quick] [--threads N] [--results FOLDER]

Every way has a copy of the model with its own projections; the other weights are shared. The ways of a file take turns.
Prints Markdown.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lab.benchmarks import _arithmetic, _files, _models, _options, _plots, _report, _ways
from lab.benchmarks._files import Case
from lab.benchmarks._measure import Rounds, Spread, take_turns
from lab.benchmarks._models import Subject
from lab.benchmarks._report import Target
from lab.benchmarks._ways import Way

BARE, OURS, EXACT, HOOKS, WEBUI, LORA = (
    "bare model",
    "hnloader",
    "hnloader, exact=True",
    "live hooks",
    "webui's way",
    f"LoRA, rank {_ways.LORA_RANK}",
)
ONE = "hnloader, one of them"
WAYS: dict[str, Way] = {
    BARE: _ways.bare,
    OURS: _ways.ours,
    ONE: _ways.ours,
    EXACT: _ways.ours_exact,
    HOOKS: _ways.live_hooks,
    WEBUI: _ways.webui,
    LORA: _ways.lora,
}


@dataclass(frozen=True)
class Group:
    """A kind of file and the ways in addition to the bare model, hooks and hnloader."""

    case: Case
    others: tuple[str, ...] = ()

    @property
    def ways(self) -> tuple[str, ...]:
        """Return the ways in the order of the table."""
        return (BARE, HOOKS, *self.others, OURS)


GROUPS = (
    Group(_files.RELU, (WEBUI, LORA, EXACT)),
    Group(_files.NORM),
    Group(_files.LINEAR, (WEBUI,)),
    Group(_files.CROSS),
    Group(_files.FIVE_RELU, (ONE,)),
    Group(_files.FIVE_LINEAR, (ONE,)),
)
SINGLE = GROUPS[:4]


@dataclass(frozen=True)
class Result:
    """The measurements of a group on a model.

    Attributes:
        where: The model's title.
        group: The file and the ways.
        rounds: The times.
        bound: The arithmetic of the file.
        errors: Largest difference of each output from the live hooks, relative to the largest value. For the bare
            model, it is the effect of the file.
    """

    where: str
    group: Group
    rounds: Rounds
    bound: _arithmetic.Bound
    errors: dict[str, float] = field(default_factory=dict)

    def share(self, way: str = OURS) -> Spread:
        """Return the time that a way adds, relative to the hooks."""
        return self.rounds.share(way, HOOKS, BARE)

    @property
    def least_share(self) -> float:
        """Return the time of the unavoidable arithmetic, relative to the time that the hooks add."""
        return self.bound.seconds / max(self.rounds.excess(HOOKS, BARE), 1e-9)

    def to_json(self) -> dict[str, object]:
        ways = {
            way: {
                "seconds": self.rounds.seconds(way).to_json(),
                "ratio": self.rounds.ratio(way, BARE).to_json(),
                "cpu_ratio": self.rounds.cpu_ratio(way, BARE).to_json(),
                "share": self.share(way).to_json(),
                "difference": self.errors.get(way),
            }
            for way in self.group.ways
        }
        return {
            "model": self.where,
            "file": self.group.case.title,
            "rounds": self.rounds.count,
            "ways": ways,
            "multiply_adds": {"live": self.bound.live, "needed": self.bound.needed},
            "least_share": self.least_share,
            "gflops": [[r.rows, r.width, r.hidden, r.flops / 1e9] for r in self.bound.rates],
        }


def measure(subject: Subject, group: Group, seconds: float, least: int = 3, most: int = 15) -> Result:
    """Time a group on a model for about `seconds`."""
    files = group.case.make(subject)
    outputs: dict[str, Tensor] = {}

    def step_of(way: str) -> Callable[[], None]:
        model = subject.copy()
        WAYS[way](model, files[:1] if way == ONE else files)
        step = subject.step(model)
        return lambda: outputs.update({way: step()})

    rounds = take_turns({way: step_of(way) for way in group.ways}, seconds=seconds, least=least, most=most)
    reference = outputs[HOOKS].float()
    errors = {way: _difference(outputs[way].float(), reference) for way in outputs if way not in (HOOKS, ONE, LORA)}
    return Result(subject.title, group, rounds, _arithmetic.bound(subject, files), errors)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


# -- what is printed


def model_table(results: Sequence[Result]) -> str:
    """Return the table of one model."""
    rows = []
    for result in results:
        for way in result.group.ways:
            rounds = result.rounds
            error = result.errors.get(way)
            rows.append(
                [
                    result.group.case.title if way == BARE else "",
                    way,
                    _report.duration(rounds.seconds(way).median),
                    "" if way == BARE else _report.with_spread(rounds.ratio(way, BARE), 3),
                    "" if way == BARE else f"{rounds.cpu_ratio(way, BARE).median:.3f}",
                    "" if way in (BARE, HOOKS) else f"{result.share(way).median:.2f}",
                    "" if error is None else f"{error:.0e}",
                ]
            )
    headers = ["file", "way", "one step", "/ bare (quartiles)", "CPU time", "added / hooks", "difference"]
    return _report.table(headers, rows, words=2)


def arithmetic_table(results: Sequence[Result]) -> str:
    """Return a table with the multiply-adds of each file on a model, and their time on this machine."""
    rows = []
    for result in results:
        bound = result.bound
        rates = [rate.flops / 1e9 for rate in bound.rates]
        rows.append(
            [
                result.group.case.title,
                f"{bound.live / 1e9:.2f} G",
                f"{bound.needed / 1e9:.2f} G",
                f"{min(rates):.0f}-{max(rates):.0f}" if rates else "",
                _report.duration(bound.seconds) if rates else "0",
                _report.duration(result.rounds.excess(HOOKS, BARE)),
                _report.duration(result.rounds.excess(OURS, BARE)),
            ]
        )
    headers = ["file", "multiply-adds", "unavoidable", "GFLOP/s", "at least", "hooks add", "hnloader adds"]
    return _report.table(headers, rows)


def targets(results: Sequence[Result]) -> list[Target]:
    """Return the targets of the results."""
    found = []
    for result in results:
        case, rounds, where = result.group.case, result.rounds, result.where
        if case in (_files.LINEAR, _files.CROSS):
            found.append(
                Target(f"{case.title}: step, relative to a bare step", where, rounds.ratio(OURS, BARE), 1.01, 1.0)
            )
        if case in (_files.RELU, _files.NORM):
            what = f"{case.title}: added time, relative to live hooks"
            found.append(Target(what, where, result.share(), 0.85, result.least_share))
        if case == _files.FIVE_RELU:
            what = f"{case.title}: added time, relative to one file"
            found.append(Target(what, where, rounds.share(OURS, ONE, BARE), 5))
        if case == _files.FIVE_LINEAR:
            found.append(Target(f"{case.title}: step, relative to one file", where, rounds.ratio(OURS, ONE), 1.01, 1.0))
    return found


def summary(results: Sequence[Result]) -> str:
    """Return the sentence in the README: the time of a step on the first model."""
    by_case = {result.group.case: result for result in results if result.where == results[0].where}
    parts = []
    for case, name in ((_files.LINEAR, "linear"), (_files.CROSS, "cross-attention only"), (_files.RELU, "relu")):
        if case in by_case:
            parts.append(f"{by_case[case].rounds.ratio(OURS, BARE).median:.2f} ({name})")
    ratios = " or ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return (
        f"A step with a [1, 2, 1] hypernetwork takes {ratios} times as long as a step without one: {results[0].where}."
    )


# -- which models


@dataclass(frozen=True)
class Plan:
    """A model, its groups, and the approximate seconds for each way."""

    make: Callable[[], Subject]
    groups: Sequence[Group]
    seconds: float
    has_targets: bool = False
    compiled: bool = False


def plans(*, quick: bool) -> list[Plan]:
    """Return the plans for this machine: for a GPU if there is one, otherwise for the processor."""
    if quick:
        few = (Group(_files.RELU), Group(_files.LINEAR))
        return [Plan(lambda: _models.sd1(32, 1), few, 0.3, has_targets=True), Plan(_models.bundled, few, 0.3)]
    if torch.cuda.is_available():
        return gpu_plans()
    return [
        Plan(lambda: _models.sd1(64, 1), GROUPS, 19, has_targets=True),
        Plan(lambda: _models.sd1(32, 2), SINGLE, 8, has_targets=True),
        Plan(lambda: _models.sd1(32, 2, full=False), SINGLE, 2.5),
        Plan(lambda: _models.sd1(32, 2, torch.bfloat16, full=False), SINGLE, 2.5),
        Plan(lambda: _models.sdxl(32, 2), SINGLE, 4),
        Plan(_models.bundled, SINGLE, 1.5),
    ]


def gpu_plans() -> list[Plan]:
    """Return SD 1 and SDXL with the dtypes and batches that are usual on GPUs, and a compiled model."""
    kinds = [(torch.float16, batch) for batch in (1, 4, 8)] + [(torch.bfloat16, batch) for batch in (2, 8)]
    few = (Group(_files.RELU), Group(_files.LINEAR))
    return [
        Plan(lambda: _models.sd1(64, 2, torch.float16), GROUPS, 2, has_targets=True),
        *[Plan(partial(_models.sd1, 64, batch, dtype), SINGLE, 1, has_targets=True) for dtype, batch in kinds],
        Plan(lambda: _models.sd1(64, 2), SINGLE, 1, has_targets=True),
        Plan(lambda: _models.sdxl(128, 2, torch.float16), SINGLE, 1, has_targets=True),
        Plan(lambda: _models.sd1(64, 2, torch.float16, full=False), few, 2, compiled=True),
    ]


def run(plan: Plan) -> list[Result]:
    """Measure a plan and print its tables."""
    subject = plan.make()
    if plan.compiled:
        subject = subject.as_compiled()
    print(f"\n### {subject.title}\n", flush=True)
    results = []
    for group in plan.groups:
        print(f"... {group.case.title}", file=sys.stderr, flush=True)
        results.append(measure(subject, group, plan.seconds * len(group.ways)))
        gc.collect()
    print(model_table(results) + "\n\n" + arithmetic_table(results), flush=True)
    return results


def main() -> None:
    options = _options.parse(__doc__)
    results: list[Result] = []
    goals: list[Target] = []
    for plan in plans(quick=options.quick):
        found = run(plan)
        results += found
        goals += targets(found) if plan.has_targets else []
    print(f"\n### Targets\n\n{_report.target_table(goals)}\n\n{summary(results)}")
    _report.save_json(
        options.results,
        "step_time",
        {
            "machine": _report.machine(),
            "results": [result.to_json() for result in results],
            "targets": [goal.to_json() for goal in goals],
            "summary": summary(results),
        },
    )
    if options.results is not None:
        _plots.step_time([result.to_json() for result in results], options.results / "speed-steps")


if __name__ == "__main__":
    main()
