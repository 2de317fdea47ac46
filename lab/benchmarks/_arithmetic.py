"""Count the multiply-adds of hypernetworks on a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hnloader.attention import find_sites
from hnloader.network import Hypernetwork
from lab.benchmarks._models import Subject


@dataclass(frozen=True)
class Load:
    """The number of layers of a kind of attention whose contexts have a width and a number of rows."""

    kind: str
    width: int
    rows: int
    layers: int


def loads(subject: Subject) -> list[Load]:
    """Return the contexts of a step, found by running it. Rows are batch times tokens."""
    counted: Counter[tuple[str, int, int]] = Counter()
    model = subject.model
    handles = []
    for site in find_sites(model):

        def count(_: nn.Module, args: tuple[torch.Tensor], kind: str = site.kind) -> None:
            counted[kind, args[0].shape[-1], args[0].shape[0] * args[0].shape[1]] += 1

        layer: Any = site.module
        handles.append(layer.to_k.register_forward_pre_hook(count))
    try:
        subject.step(model)()
    finally:
        for handle in handles:
            handle.remove()
    return [Load(kind, width, rows, layers) for (kind, width, rows), layers in sorted(counted.items())]


def multiply_adds(hypernetwork: Hypernetwork, width: int) -> int:
    """Return the multiply-adds of the k and v sides for one row of a context, in matrix products only."""
    if width not in hypernetwork.widths or hypernetwork.architecture is None:
        return 0
    specs = hypernetwork.architecture.layers(width)
    return 2 * sum(spec.inputs * spec.outputs for spec in specs if spec.kind == "linear")


@dataclass(frozen=True)
class Arithmetic:
    """The multiply-adds of files in a step.

    Attributes:
        live: Multiply-adds if every side is computed at every layer.
        needed: Multiply-adds that every exact way needs: sides with an activation or a norm, in self-attention. Affine
            sides can be folded, and contexts of cross-attention are equal in all steps.
    """

    live: int
    needed: int


def of_step(subject: Subject, hypernetworks: Sequence[Hypernetwork]) -> Arithmetic:
    """Return the multiply-adds of files in a step of a model."""
    live = needed = 0
    for load in loads(subject):
        for hypernetwork in hypernetworks:
            count = multiply_adds(hypernetwork, load.width) * load.rows * load.layers
            live += count
            architecture = hypernetwork.architecture
            if load.kind == "self" and architecture is not None and not architecture.affine:
                needed += count
    return Arithmetic(live, needed)
