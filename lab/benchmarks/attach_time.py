"""What attaching costs besides the steps: time of attach, detach and set_strength, memory, and the first image.

    python -m lab.benchmarks.attach_time [--quick] [--threads N] [--results FOLDER]

Work that is put off until the model is called next counts where it was caused: as what the first step takes longer than
the next one. The steps for that have latents of 8 x 8, so that a step is short. Prints Markdown.
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
from hnloader.attention import find_sites
from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.demo.sampling import load_pipeline
from hnloader.network import Architecture, Hypernetwork
from lab.benchmarks import _models, _options, _report
from lab.benchmarks._measure import Memory, Rounds, Sample, Spread, memory_of, timed
from lab.benchmarks._models import Subject
from lab.benchmarks._report import Target, duration, megabytes, with_spread
from lab.benchmarks._ways import Attaching

# 101 MB at the widths of SD 1.
KINDS = {"linear": Architecture((1, 2.3, 1)), "relu": Architecture((1, 2.3, 1), "relu")}


@dataclass(frozen=True)
class Cost:
    """What one file costs on one model.

    Attributes:
        kind: A key of `KINDS`.
        file_bytes: Size of the file.
        rounds: Times of `load`, `torch.load`, `attach`, `first`, `later`, `set_strength`, `after`, `detach`, `bare`;
            `first`, `later` and `after` are steps.
        attached: Memory of attaching.
        stepped: Memory of the first step after it.
        detached: Memory of detaching; what is kept is negative.
        folded_bytes: Size of the model's projections that the hypernetwork is folded into.
    """

    kind: str
    file_bytes: int
    rounds: Rounds
    attached: Memory
    stepped: Memory
    detached: Memory
    folded_bytes: int

    def total(self, *parts: str, less: str = "") -> Spread:
        """The sum of some times, less another one for each step among them; never below 0."""
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
        """Seconds, with the work that the first step does for it."""
        return self.total("attach", "first", "detach", less="later")

    @property
    def set_strength(self) -> Spread:
        """Seconds, with the work that the next step does for it."""
        return self.total("set_strength", "after", less="later")

    @property
    def kept(self) -> int:
        """Bytes that attaching and the first step keep, the step's own output left out."""
        return self.attached.kept + self.stepped.kept


def measure(subject: Subject, kind: str, folder: Path, repeats: int) -> Cost:
    """Attach a file to the model, change its strength and detach it, so many times."""
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
    rounds = Rounds({name: taken[1:] for name, taken in samples.items()})  # the first one warmed up
    return Cost(kind, path.stat().st_size, rounds, *_memory(subject, hypernetwork))


def _memory(subject: Subject, hypernetwork: Hypernetwork) -> tuple[Memory, Memory, Memory, int]:
    hypernetwork.release()
    gc.collect()
    attach = Attaching(subject.model, [hypernetwork])
    attached = memory_of(attach)
    stepped = memory_of(subject.step(subject.model))
    folded = _folded_bytes(subject, attach.attachment)

    def detach() -> None:
        attach.attachment.detach()
        gc.collect()

    return attached, stepped, memory_of(detach), folded


def _folded_bytes(subject: Subject, attachment: hnloader.Attachment) -> int:
    sites = {site.name: site.module for site in find_sites(subject.model)}
    return sum(
        parameter.numel() * parameter.element_size()
        for row in attachment.explain().rows
        if row.plan == "fold"
        for parameter in sites[row.site].get_submodule(f"to_{row.side}").parameters()
    )


def time_table(costs: Sequence[Cost], step: float) -> str:
    """Seconds, and the same in steps and in times that torch.load takes."""
    rows = []
    for cost in costs:
        loading = cost.rounds.seconds("torch.load").median
        for name, spread in {
            "torch.load": cost.rounds.seconds("torch.load"),
            "hnloader.load": cost.rounds.seconds("load"),
            "attach, and its work in the first step": cost.total("attach", "first", less="later"),
            "detach": cost.rounds.seconds("detach"),
            "set_strength, and its work in the next step": cost.set_strength,
        }.items():
            size = f"{cost.kind}, {cost.file_bytes / 1e6:.0f} MB" if name == "torch.load" else ""
            seconds = f"{duration(spread.median)} ({duration(spread.low)}-{duration(spread.high)})"
            rows.append([size, name, seconds, f"{spread.median / loading:.3f}", f"{spread.median / step:.4f}"])
    headers = ["file", "", "time (quartiles)", "to torch.load", "to a step"]
    return _report.table(headers, rows, words=2)


def memory_table(costs: Sequence[Cost]) -> str:
    """Bytes of tensors beyond the model and the file."""
    rows = [
        [
            cost.kind,
            megabytes(cost.file_bytes),
            megabytes(cost.folded_bytes),
            megabytes(cost.attached.peak),
            megabytes(cost.kept),
            megabytes(cost.kept + cost.detached.kept),
        ]
        for cost in costs
    ]
    return _report.table(
        ["file", "its size", "folded projections", "most while attaching", "kept while attached", "kept after"], rows
    )


def targets(costs: Sequence[Cost], subject: Subject) -> list[Target]:
    """The targets for attaching."""
    found = []
    for cost in costs:
        where = f"{cost.kind} file of {cost.file_bytes / 1e6:.0f} MB, {subject.title}"
        found.append(Target("attach and detach", where, cost.attach_and_detach, 1, unit=" s"))
        found.append(Target("set_strength", where, cost.set_strength, 0.2, unit=" s"))
        if cost.folded_bytes:
            # The contexts of one text are kept besides: half a megabyte.
            memory = Spread.of([cost.kept / cost.folded_bytes])
            found.append(Target("memory kept, to what is folded", where, memory, 1.01))
    return found


# -- images


def images(rounds: int, steps: int = 10) -> Rounds:
    """Images of the bundled pipeline: bare, and the first, second and third after attaching."""
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
    """Each image, to the second one with the hypernetwork and to the bare one."""
    rows = [
        [
            name,
            duration(taken.seconds(name).median),
            with_spread(taken.ratio(name, "second"), 3),
            with_spread(taken.ratio(name, "bare"), 3),
        ]
        for name in taken.samples
    ]
    return _report.table(["", "time", "to the second image", "to a bare image"], rows)


def image_target(taken: Rounds) -> Target:
    """The first image may take as much longer as attaching takes."""
    attach = taken.ratio("attach", "second").median
    return Target("first image to the second", "bundled pipeline", taken.ratio("first", "second"), round(1 + attach, 3))


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
    print(f"\nA step is one with {size} x {size} latents, batch 1, bare: {duration(step)}.\n")
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
                    "bytes_folded": cost.folded_bytes,
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
