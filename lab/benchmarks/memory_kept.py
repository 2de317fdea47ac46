"""Measure the memory that an attachment keeps for each attention site, and the memory after detaching.

    python -m lab.benchmarks.memory_kept [--quick] [--threads N] [--results FOLDER]

Self-attention keeps folded projections, and cross-attention the keys and values of a few texts. Prints Markdown.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from hnloader.attention import AttentionSite, find_sites
from hnloader.network import Hypernetwork
from lab.benchmarks import _files, _models, _options, _report
from lab.benchmarks._measure import Spread, memory_of
from lab.benchmarks._models import Subject
from lab.benchmarks._report import Target
from lab.benchmarks._ways import Attaching

TEXTS = 4  # texts that an attachment may keep
MANY = 12  # texts in turns
BOUNDS = {"self": "folded projections", "cross": f"keys and values of {TEXTS} texts"}


@dataclass(frozen=True)
class Kept:
    """The bytes that a linear file for one kind of attention keeps.

    Attributes:
        kind: A key of `BOUNDS`.
        sites: Number of attention sites of this kind.
        one: Bytes after the first step, without its output.
        many: Bytes after steps with `MANY` texts whose tensors are alive.
        bound: Highest acceptable bytes.
        after: Bytes after detaching.
    """

    kind: str
    sites: int
    one: int
    many: int
    bound: int
    after: int


def sites_of(subject: Subject, kind: str) -> list[AttentionSite]:
    """Return the attention sites of one kind."""
    return [site for site in find_sites(subject.model) if site.kind == kind]


def projection_bytes(subject: Subject) -> int:
    """Return the size of `to_k` and `to_v` of self-attention: what folding copies."""
    return sum(
        parameter.numel() * parameter.element_size()
        for site in sites_of(subject, "self")
        for part in ("to_k", "to_v")
        for parameter in site.module.get_submodule(part).parameters()
    )


def text_bytes(subject: Subject) -> int:
    """Return the size of what one text keeps: keys and values of all layers, both changed contexts, and a copy."""
    text: torch.Tensor = subject.inputs["encoder_hidden_states"]
    rows = text.numel() // text.shape[-1]
    widths = sum(
        site.module.get_submodule(part).get_parameter("weight").shape[0]
        for site in sites_of(subject, "cross")
        for part in ("to_k", "to_v")
    )
    return text.element_size() * (3 * text.numel() + rows * widths)


def measure(subject: Subject, kind: str) -> Kept:
    """Attach a file for one kind of attention, run steps with many texts, and detach it."""
    sites = sites_of(subject, kind)
    widths = tuple(sorted({site.width for site in sites}))
    hypernetwork = Hypernetwork.new(widths, _files.LINEAR.architecture).requires_grad_(False)
    text = subject.inputs["encoder_hidden_states"]
    inputs = [{**subject.inputs, "encoder_hidden_states": torch.randn_like(text)} for _ in range(MANY)]
    steps = [replace(subject, inputs=each).step(subject.model) for each in inputs]
    attach = Attaching(subject.model, [hypernetwork])
    one = memory_of(attach).kept + memory_of(steps[0]).kept
    many = one + memory_of(partial(_run_all, steps[1:])).kept
    after = many + memory_of(partial(_detach, attach, hypernetwork)).kept
    bound = projection_bytes(subject) if kind == "self" else TEXTS * text_bytes(subject)
    return Kept(kind, len(sites), one, many, bound, after)


def _run_all(steps: Sequence[Callable[[], object]]) -> None:
    for step in steps:
        step()


def _detach(attach: Attaching, hypernetwork: Hypernetwork) -> None:
    attach.attachment.detach()
    hypernetwork.release()
    gc.collect()


def memory_table(found: Sequence[Kept]) -> str:
    """Return a table of the bytes for each site."""
    rows = [
        [
            f"{each.kind}-attention: {BOUNDS[each.kind]}",
            str(each.sites),
            *[f"{count / each.sites / 1e3:.0f} kB" for count in (each.one, each.many, each.bound)],
            f"{each.after} B",
        ]
        for each in found
    ]
    headers = ["kept", "sites", "for a site, one text", f"{MANY} texts", "at most", "all sites, after detaching"]
    return _report.table(headers, rows)


def targets(found: Sequence[Kept], subject: Subject) -> list[Target]:
    """Return the targets: a bound, with 1 % for the values that notice changes, and nothing after detaching."""
    goals = []
    for each in found:
        share = Spread.of([each.many / each.bound])
        what = f"memory for {each.kind}-attention, relative to {BOUNDS[each.kind]}"
        goals.append(Target(what, subject.title, share, 1.01))
        after = Spread.of([float(each.after)])
        goals.append(Target(f"memory for {each.kind}-attention after detaching", subject.title, after, 0, unit=" B"))
    return goals


def main() -> None:
    options = _options.parse(__doc__)
    subject = _models.launch_bound() if options.quick else _models.sd1(8, 1)
    found = [measure(subject, kind) for kind in BOUNDS]
    print(f"\n### Memory of an attachment: {subject.title}\n\n{memory_table(found)}")
    goals = targets(found, subject)
    print(f"\n### Targets of memory\n\n{_report.target_table(goals)}")
    _report.save_json(
        options.results,
        "memory_kept",
        {"kept": [asdict(each) for each in found], "targets": [goal.to_json() for goal in goals]},
    )


if __name__ == "__main__":
    main()
