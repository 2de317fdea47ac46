"""What the arithmetic alone takes: multiply-adds of the files, and the rate at which this machine does them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks._measure import timed
from benchmarks._models import DEVICE, Subject
from hnloader.attention import find_sites
from hnloader.attention.sites import Kind
from hnloader.network import Hypernetwork


@dataclass(frozen=True)
class Load:
    """What goes through layers of one kind: how many layers have contexts of this width with this many rows."""

    kind: Kind
    width: int
    rows: int
    layers: int


def loads(subject: Subject) -> list[Load]:
    """The contexts of one step, found by running one. Rows are batch times tokens."""
    counted: Counter[tuple[Kind, int, int]] = Counter()
    model = subject.model
    handles = []
    for site in find_sites(model):

        def count(_: nn.Module, args: tuple[torch.Tensor], kind: Kind = site.kind) -> None:
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
    """Of the k and the v side for one row of a context; the products alone."""
    if width not in hypernetwork.widths or hypernetwork.architecture is None:
        return 0
    specs = hypernetwork.architecture.layers(width)
    return 2 * sum(spec.inputs * spec.outputs for spec in specs if spec.kind == "linear")


@dataclass(frozen=True)
class Rate:
    """How fast a product of the shapes in question runs: `rows` x `width` by `width` x `hidden`, and back."""

    rows: int
    width: int
    hidden: int
    flops: float


def matmul_rate(rows: int, width: int, hidden: int, dtype: torch.dtype, repeats: int = 9) -> Rate:
    """Measure it with `functional.linear`, the quickest of some runs; two operations per multiply-add."""
    x = torch.randn(rows, width, device=DEVICE, dtype=dtype)
    first = torch.randn(hidden, width, device=DEVICE, dtype=dtype)
    second = torch.randn(width, hidden, device=DEVICE, dtype=dtype)
    times = [timed(lambda: functional.linear(functional.linear(x, first), second)).wall for _ in range(repeats + 1)]
    return Rate(rows, width, hidden, 4 * rows * width * hidden / min(times[1:]))


@dataclass(frozen=True)
class Bound:
    """The products of a file at the layers of a model.

    Attributes:
        live: Multiply-adds per step when every side is computed at every layer.
        needed: Those that no exact way leaves out: of sides with an activation or a norm, in self-attention. Affine
            sides can be folded, and the contexts of cross-attention are the same in every step.
        seconds: What `needed` takes at the measured rates.
        rates: The rates.
    """

    live: int
    needed: int
    seconds: float
    rates: tuple[Rate, ...]


def bound(subject: Subject, hypernetworks: Sequence[Hypernetwork]) -> Bound:
    """Of these files on this model."""
    dtype = next(subject.model.parameters()).dtype
    live = needed = 0
    seconds = 0.0
    rates = []
    for load in loads(subject):
        each = [(hn, multiply_adds(hn, load.width) * load.rows * load.layers) for hn in hypernetworks]
        live += sum(count for _, count in each)
        if load.kind == "cross":
            continue
        count = sum(count for hn, count in each if hn.architecture is not None and not hn.architecture.affine)
        if count:
            rate = matmul_rate(load.rows, load.width, 2 * load.width, dtype)
            rates.append(rate)
            needed += count
            seconds += 2 * count / rate.flops
    return Bound(live, needed, seconds, tuple(rates))
