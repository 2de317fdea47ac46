"""Time a step of a UNet with hypernetworks: hnloader and other ways, in the same run.

    python -m lab.benchmarks.step_time [--quick] [--only MODEL ...] [--threads N] [--results FOLDER]

Prints Markdown: a table for each model, and the targets with their verdicts.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch._dynamo
from torch._dynamo.utils import counters

from lab.benchmarks import _files, _models, _options, _plots, _report, _steps, _ways, _webui_models
from lab.benchmarks._files import Case
from lab.benchmarks._measure import Spread
from lab.benchmarks._models import Subject
from lab.benchmarks._report import Target
from lab.benchmarks._steps import (
    BARE,
    EXACT,
    HOOKS,
    LEAST,
    LORA,
    NEW_TEXT,
    ONE,
    OURS,
    WEBUI,
    WINDOW,
    Effort,
    Group,
    Result,
)

LAUNCHES = (
    Group(_files.LINEAR, (HOOKS, EXACT, LEAST, NEW_TEXT, OURS)),
    Group(_files.RELU, (HOOKS, EXACT, LEAST, OURS)),
    Group(_files.NORM, (HOOKS, EXACT, LEAST, OURS)),
    Group(_files.CROSS_LINEAR, (HOOKS, LEAST, OURS)),
    Group(_files.CROSS, (HOOKS, LEAST, NEW_TEXT, OURS)),
    Group(_files.FIVE_LINEAR, (HOOKS, LEAST, OURS)),
)
# The models of webuis make a new text in each step.
IN_WEBUIS = tuple(Group(group.case, (HOOKS, OURS)) for group in LAUNCHES)
REAL = (
    Group(_files.LINEAR, (HOOKS, OURS)),
    Group(_files.RELU, (HOOKS, EXACT, LEAST, OURS)),
    Group(_files.NORM, (HOOKS, LEAST, OURS)),
    Group(_files.CROSS, (HOOKS, OURS)),
)
WHOLE = (
    Group(_files.LINEAR, (OURS,)),
    Group(_files.RELU, (HOOKS, EXACT, LEAST, OURS)),
    Group(_files.CROSS, (OURS,)),
)
COMPARED = (
    Group(_files.LINEAR, (HOOKS, WEBUI, OURS)),
    Group(_files.RELU, (HOOKS, WEBUI, LORA, EXACT, LEAST, OURS)),
    Group(_files.NORM, (HOOKS, LEAST, OURS)),
    Group(_files.CROSS, (HOOKS, OURS)),
    Group(_files.FIVE_RELU, (HOOKS, ONE, OURS)),
    Group(_files.FIVE_LINEAR, (HOOKS, OURS)),
)
COMPILED = (Group(_files.LINEAR, (OURS,)), Group(_files.RELU, (OURS,)))


# -- targets


def ratio_target(result: Result, limit: float) -> Target:
    """Return the target of a step, relative to a bare step."""
    what = f"{result.group.case.title}: step, relative to a bare step"
    return Target(what, result.where, result.rounds.ratio(OURS, BARE), limit, result.least)


def share_target(result: Result, limit: float) -> Target:
    """Return the target of the added time, relative to the time that live hooks add."""
    least = result.share(LEAST).median if LEAST in result.group.ways else None
    what = f"{result.group.case.title}: added time, relative to live hooks"
    return Target(what, result.where, result.share(), limit, least)


def exact_target(result: Result, hooks: str = HOOKS) -> Target:
    """Return the target of `exact=True`, relative to hooks that compute in the same dtype."""
    what = f"{result.group.case.title}: step with exact=True, relative to {hooks}"
    return Target(what, result.where, result.rounds.ratio(EXACT, hooks), 1.0)


def window_target(subject: Subject, case: Case, rounds: int) -> Target:
    """Print the time of hnloader's work around a call, and return the target of what a window adds to it."""
    taken = _steps.calls_without_layers(subject, case, rounds)
    around, added = (
        Spread(*[seconds * 1e6 for seconds in taken.difference(way, base).to_json()])
        for way, base in ((OURS, BARE), (WINDOW, OURS))
    )
    print(f"\nhnloader's work around a call of the model, {case.title}: {_report.with_spread(around, 0)} us.")
    return Target(f"{case.title}: time that a window adds to a call", subject.title, added, 50, unit=" us")


def launch_bound_targets(results: Sequence[Result]) -> list[Target]:
    """Return the targets where calls take the time."""
    limits = {_files.LINEAR: 1.0, _files.CROSS_LINEAR: 0.99, _files.CROSS: 0.99, _files.FIVE_LINEAR: 1.0}
    shares = {_files.RELU: 0.6, _files.NORM: 0.7}
    found = []
    for result in results:
        case = result.group.case
        if case in limits:
            found.append(ratio_target(result, limits[case]))
        if case in shares:
            found.append(share_target(result, shares[case]))
        if EXACT in result.group.ways:
            found.append(exact_target(result))
    return found


def arithmetic_bound_targets(results: Sequence[Result], *, half: bool = False) -> list[Target]:
    """Return the targets where products take the time. In half precision, `exact=True` computes in float32."""
    limits = {_files.LINEAR: 1.0, _files.FIVE_LINEAR: 1.0, _files.CROSS: 0.998}
    found = []
    for result in results:
        case = result.group.case
        if case in limits:
            found.append(ratio_target(result, limits[case]))
        if case == _files.RELU and result.least is not None:
            found.append(ratio_target(result, round(result.least + 0.01, 3)))
        if case == _files.NORM and half:
            found.append(share_target(result, 0.9))
        if case == _files.FIVE_RELU:
            what = f"{case.title}: added time, relative to one file"
            found.append(Target(what, result.where, result.rounds.share(OURS, ONE, BARE), 5))
        if EXACT in result.group.ways:
            found.append(exact_target(result, WEBUI if half else HOOKS))
    return found


def compiled_targets(results: Sequence[Result]) -> list[Target]:
    """Return the targets of a compiled model."""
    limits = {_files.LINEAR: 1.01, _files.RELU: 1.05}
    return [ratio_target(result, limits[result.group.case]) for result in results if result.group.case in limits]


def compilations(subject: Subject, case: Case) -> int:
    """Return how many graphs new strengths compile: two of them, after the first step with a file."""
    model = subject.copy()
    attachment = _ways.ours(model, case.make(subject))
    step = subject.step(model)
    step()
    before = counters["stats"]["unique_graphs"]
    for strength in (0.5, -0.3):
        attachment.set_strength(strength)
        step()
    return counters["stats"]["unique_graphs"] - before


def compilation_targets(subject: Subject) -> list[Target]:
    """Return the targets of new strengths of a compiled model, which are counts."""
    return [
        Target(f"{case.title}: graphs compiled for new strengths", subject.title, Spread.of([count]), 0)
        for case in (_files.LINEAR, _files.RELU)
        for count in (float(compilations(subject, case)),)
    ]


def summary(results: Sequence[Result]) -> str:
    """Return a sentence in the README: the times of a step of a model."""
    by_case = {result.group.case: result for result in results}
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
    """A model and its measurements.

    Attributes:
        make: Returns the model.
        groups: The files.
        effort: Limits on the time and the rounds.
        targets: Returns the targets of the results; None for a model without targets.
        threads: Threads of torch; None for those of the command line.
        compiled: True to compile the model.
        calls: Rounds for the time around a call of the model; 0 to omit it.
    """

    make: Callable[[], Subject]
    groups: Sequence[Group]
    effort: Effort
    targets: Callable[[Sequence[Result]], list[Target]] | None = None
    threads: int | None = None
    compiled: bool = False
    calls: int = 0


def cpu_plans() -> dict[str, Plan]:
    """Return the plans for a processor by name."""
    reduced = partial(_models.sd1, 32, 2, full=False)
    half = partial(arithmetic_bound_targets, half=True)
    launches = Effort(20, sets=60, most=5, burst=3)
    return {
        "launch-bound": Plan(_models.launch_bound, LAUNCHES, launches, launch_bound_targets, threads=1, calls=50),
        **{
            f"launch-bound-{name}": Plan(make, IN_WEBUIS, launches, launch_bound_targets, threads=1)
            for name, make in {"a1111": _webui_models.a1111, "forge": _webui_models.forge}.items()
        },
        "full": Plan(lambda: _models.sd1(64, 1), WHOLE, Effort(120, sets=3), arithmetic_bound_targets),
        "reduced": Plan(reduced, COMPARED, Effort(60, sets=3), arithmetic_bound_targets),
        "bfloat16": Plan(lambda: reduced(torch.bfloat16), COMPARED, Effort(60, sets=3), half),
        "sdxl": Plan(lambda: _models.sdxl(32, 2), REAL, Effort(90)),
        "bundled": Plan(_models.bundled, REAL, Effort(10, sets=3)),
        "compiled": Plan(
            _models.launch_bound, COMPILED, Effort(30, most=100, burst=5), compiled_targets, threads=1, compiled=True
        ),
    }


def gpu_plans() -> dict[str, Plan]:
    """Return SD 1 and SDXL with the dtypes and batches that are usual on GPUs, and a compiled model, by name."""
    kinds = itertools.product((torch.float16, torch.bfloat16), (1, 4, 8))
    effort = Effort(10, most=50, burst=3)
    return {
        "half": Plan(
            lambda: _models.sd1(64, 2, torch.float16), COMPARED, effort, partial(arithmetic_bound_targets, half=True)
        ),
        **{
            f"{str(dtype).removeprefix('torch.')}-{batch}": Plan(partial(_models.sd1, 64, batch, dtype), REAL, effort)
            for dtype, batch in kinds
        },
        "float32": Plan(lambda: _models.sd1(64, 2), REAL, effort),
        "sdxl": Plan(lambda: _models.sdxl(128, 2, torch.float16), REAL, effort),
        "compiled": Plan(
            lambda: _models.sd1(64, 2, torch.float16, full=False), COMPILED, effort, compiled_targets, compiled=True
        ),
    }


def quick_plans() -> dict[str, Plan]:
    """Return few rounds of the smallest models."""
    effort = Effort(10, least=2, most=20)
    return {
        "launch-bound": Plan(_models.launch_bound, LAUNCHES, effort, launch_bound_targets, threads=1, calls=3),
        "bundled": Plan(_models.bundled, REAL, effort, arithmetic_bound_targets),
    }


def run(plan: Plan, threads: int) -> tuple[list[Result], list[Target]]:
    """Measure a plan, print its tables, and return the results and targets."""
    torch.set_num_threads(plan.threads or threads)
    subject = plan.make()
    if plan.threads == 1:
        subject = replace(subject, title=f"{subject.title}, one thread")
    if plan.compiled:
        torch._dynamo.reset()
        torch._dynamo.config.cache_size_limit = 64  # for all copies
        subject = subject.as_compiled()
    print(f"\n### {subject.title}\n", flush=True)
    results = _steps.measure(subject, plan.groups, plan.effort)
    print(_steps.model_table(results) + "\n\n" + _steps.arithmetic_table(results), flush=True)
    targets = plan.targets(results) if plan.targets is not None else []
    if plan.calls:
        targets += [window_target(subject, case, plan.calls) for case in (_files.LINEAR, _files.RELU)]
    if plan.compiled:
        targets += compilation_targets(subject)
    return results, targets


def main() -> None:
    plans = gpu_plans() if torch.cuda.is_available() else cpu_plans()
    options = _options.parse(__doc__, tuple(plans))
    chosen = quick_plans() if options.quick else {name: plans[name] for name in options.only}
    results: list[Result] = []
    targets: list[Target] = []
    sentences = []
    for name, plan in chosen.items():
        print(f"... {name}", file=sys.stderr, flush=True)
        found, goals = run(plan, options.threads)
        results += found
        targets += goals
        if name in ("launch-bound", "full", "half"):
            sentences.append(summary(found))
    print(f"\n### Targets\n\n{_report.target_table(targets)}\n\n" + " ".join(sentences))
    _report.save_json(
        options.results,
        "step_time",
        {
            "machine": _report.machine(options.threads),
            "results": [result.to_json() for result in results],
            "targets": [target.to_json() for target in targets],
            "summary": " ".join(sentences),
        },
    )
    if options.results is not None:
        _plots.step_time([result.to_json() for result in results], options.results / "speed-steps")


if __name__ == "__main__":
    main()
