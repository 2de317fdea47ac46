"""Measure the cost of attaching: time of attach, detach and set_strength, memory, and the first image.

    python -m lab.benchmarks.attach_time [--quick] [--threads N] [--results FOLDER]

Work that is delayed until the next call counts for the action that caused it: the time of the first step minus the time
of the next one. These steps have latents of 8 x 8, so that they are short. Prints Markdown.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import hnloader
from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.demo.sampling import load_pipeline
from hnloader.network import Architecture, Hypernetwork
from lab.benchmarks import _models, _options, _report
from lab.benchmarks._measure import Memory, Rounds, Sample, Spread, memory_of, timed
from lab.benchmarks._models import Subject
from lab.benchmarks._report import Target, duration, megabytes, with_spread
from lab.benchmarks._ways import Attaching
from lab.benchmarks.memory_kept import projection_bytes, text_bytes

KINDS = {"linear": Architecture((1, 2.3, 1)), "relu": Architecture((1, 2.3, 1), "relu")}  # 101 MB for SD 1


@dataclass(frozen=True)
class Cost:
    """The cost of one file on one model.

    Attributes:
        kind: A key of `KINDS`.
        file_bytes: Size of the file.
        rounds: Times of `load`, `torch.load`, `attach`, `first`, `later`, `set_strength`, `after`, `detach`, `bare`;
            `first`, `later` and `after` are steps.
        attached: Memory of attaching.
        stepped: Memory of the first step afterwards.
        detached: Memory of detaching; released bytes are negative.
        bound: Bytes that may be kept: of folded projections, and for one text.
    """

    kind: str
    file_bytes: int
    rounds: Rounds
    attached: Memory
    stepped: Memory
    detached: Memory
    bound: int

    def total(self, *parts: str, less: str = "") -> Spread:
        """Return the sum of some times minus the time `less` for each step among them, at least 0."""
        walls = {name: [sample.wall for sample in samples] for name, samples in self.rounds.samples.items()}
        steps = len({"first", "after"} & set(parts))
        return Spread.of(
            [
                max(sum(walls[part][i] for part in parts) - (steps * walls[less][i] if less else 0), 0.0)
                for i in range(self.rounds.count)
            ]
        )

    @property
    def attach_and_detach(self) -> Spread:
        """Return the seconds, including the delayed work in the first step."""
        return self.total("attach", "first", "detach", less="later")

    @property
    def set_strength(self) -> Spread:
        """Return the seconds, including the delayed work in the next step."""
        return self.total("set_strength", "after", less="later")

    @property
    def kept(self) -> int:
        """Return the bytes that attaching and the first step keep, without the output of the step."""
        return self.attached.kept + self.stepped.kept


def measure(subject: Subject, kind: str, folder: Path, repeats: int) -> Cost:
    """Attach a file to the model, change its strength and detach it, `repeats` times."""
    path = folder / f"{kind}.pt"
    hnloader.save(Hypernetwork.new(subject.widths, KINDS[kind], name=kind), path)
    model, step = subject.model, subject.step(subject.model)
    names = ("load", "torch.load", "bare", "attach", "first", "later", "set_strength", "after", "detach")
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    hypernetwork = hnloader.load(path)
    for number in range(repeats + 1):
        samples["load"].append(timed(lambda: hnloader.load(path)))
        samples["torch.load"].append(timed(lambda: torch.load(path, weights_only=True)))
        samples["bare"].append(timed(step))
        attach = Attaching(model, [hypernetwork])
        samples["attach"].append(timed(attach))
        samples["first"].append(timed(step))
        samples["later"].append(timed(step))
        samples["set_strength"].append(timed(partial(attach.attachment.set_strength, 0.5 + number / 100)))
        samples["after"].append(timed(step))
        samples["detach"].append(timed(attach.attachment.detach))
    rounds = Rounds({name: taken[1:] for name, taken in samples.items()})  # without the warm-up
    return Cost(kind, path.stat().st_size, rounds, *_memory(subject, hypernetwork))


def _memory(subject: Subject, hypernetwork: Hypernetwork) -> tuple[Memory, Memory, Memory, int]:
    hypernetwork.release()
    gc.collect()
    attach = Attaching(subject.model, [hypernetwork])
    attached = memory_of(attach)
    stepped = memory_of(subject.step(subject.model))

    def detach() -> None:
        attach.attachment.detach()
        gc.collect()

    affine = hypernetwork.architecture is not None and hypernetwork.architecture.affine
    bound = text_bytes(subject) + (projection_bytes(subject) if affine else 0)
    return attached, stepped, memory_of(detach), bound


def time_table(costs: Sequence[Cost], step: float) -> str:
    """Return a table of times: in seconds, relative to torch.load, and relative to a step."""
    rows = []
    for cost in costs:
        loading = cost.rounds.seconds("torch.load").median
        for name, spread in {
            "torch.load": cost.rounds.seconds("torch.load"),
            "hnloader.load": cost.rounds.seconds("load"),
            "attach, with its work in the first step": cost.total("attach", "first", less="later"),
            "detach": cost.rounds.seconds("detach"),
            "set_strength, with its work in the next step": cost.set_strength,
        }.items():
            size = f"{cost.kind}, {cost.file_bytes / 1e6:.0f} MB" if name == "torch.load" else ""
            seconds = f"{duration(spread.median)} ({duration(spread.low)}-{duration(spread.high)})"
            rows.append([size, name, seconds, f"{spread.median / loading:.3f}", f"{spread.median / step:.4f}"])
    headers = ["file", "", "time (quartiles)", "/ torch.load", "/ step"]
    return _report.table(headers, rows, words=2)


def memory_table(costs: Sequence[Cost]) -> str:
    """Return a table of the tensors' bytes without the model and the file."""
    rows = [
        [
            cost.kind,
            megabytes(cost.file_bytes),
            megabytes(cost.bound),
            megabytes(cost.attached.peak),
            megabytes(cost.kept),
            megabytes(cost.kept + cost.detached.kept),
        ]
        for cost in costs
    ]
    return _report.table(
        ["file", "size", "folds and one text", "peak while attaching", "kept while attached", "kept after"], rows
    )


def targets(costs: Sequence[Cost], subject: Subject) -> list[Target]:
    """Return the targets of attaching."""
    found = []
    for cost in costs:
        where = f"{cost.kind} file of {cost.file_bytes / 1e6:.0f} MB, {subject.title}"
        found.append(Target("attach and detach", where, cost.attach_and_detach, 1, unit=" s"))
        found.append(Target("set_strength", where, cost.set_strength, 0.2, unit=" s"))
        memory = Spread.of([cost.kept / cost.bound])
        found.append(Target("memory kept, relative to folds and one text", where, memory, 1))
    return found


# -- images


def images(rounds: int, steps: int = 10) -> Rounds:
    """Time images of the bundled pipeline: bare, and the first three after attaching."""
    pipeline = load_pipeline(pipeline_folder()).to(_models.DEVICE)
    hypernetwork = hnloader.load(next(iter(hypernetwork_paths().values())))
    samples: dict[str, list[Sample]] = {name: [] for name in ("bare", "attach", "first", "second", "third")}

    def image() -> object:
        return pipeline("a large red circle in the center on a white background", num_inference_steps=steps)

    image()
    for _ in range(rounds):
        attach = Attaching(pipeline, [hypernetwork])
        samples["bare"].append(timed(image))
        samples["attach"].append(timed(attach))
        for name in ("first", "second", "third"):
            samples[name].append(timed(image))
        attach.attachment.detach()
    return Rounds(samples)


def image_table(taken: Rounds) -> str:
    """Return a table of the images, relative to the second attached image and to a bare one."""
    rows = [
        [
            name,
            duration(taken.seconds(name).median),
            with_spread(taken.ratio(name, "second"), 3),
            with_spread(taken.ratio(name, "bare"), 3),
        ]
        for name in taken.samples
    ]
    return _report.table(["", "time", "/ second image", "/ bare image"], rows)


def image_target(taken: Rounds) -> Target:
    """Return the target of the first image, whose limit allows for the time of attaching."""
    attach = taken.ratio("attach", "second").median
    return Target(
        "first image, relative to the second", "bundled pipeline", taken.ratio("first", "second"), round(1 + attach, 3)
    )


def main() -> None:
    options = _options.parse(__doc__)
    subject = _models.sd1(8, 1)
    print(f"\n### Attaching: {subject.title}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        costs = [measure(subject, kind, Path(folder), 2 if options.quick else 9) for kind in KINDS]
    size = 32 if options.quick else 64
    whole = _models.Subject("", subject.model, _models.step_inputs(size, 1, 768, torch.float32))
    step = Spread.of([timed(whole.step(whole.model)).wall for _ in range(4)][1:]).median
    print(time_table(costs, step))
    print(f"\nA step here is a bare one with {size} x {size} latents, batch 1: {duration(step)}.\n")
    print(memory_table(costs))
    taken = images(3 if options.quick else 15)
    print(f"\n### The first image: bundled pipeline, 10 steps\n\n{image_table(taken)}")
    goals = [*targets(costs, subject), image_target(taken)]
    print(f"\n### Targets of attaching\n\n{_report.target_table(goals)}")
    _report.save_json(
        options.results,
        "attach_time",
        {
            "machine": _report.machine(),
            "files": {
                cost.kind: {
                    **{name: cost.rounds.seconds(name).to_json() for name in cost.rounds.samples},
                    "attach_and_detach": cost.attach_and_detach.to_json(),
                    "set_strength_in_all": cost.set_strength.to_json(),
                    "bytes_kept": cost.kept,
                    "bytes_kept_after_detach": cost.kept + cost.detached.kept,
                    "bytes_bound": cost.bound,
                    "bytes_at_most": cost.attached.peak,
                }
                for cost in costs
            },
            "images": {name: taken.seconds(name).to_json() for name in taken.samples},
            "targets": [goal.to_json() for goal in goals],
        },
    )


if __name__ == "__main__":
    main()
