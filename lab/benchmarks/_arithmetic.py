"""What the arithmetic alone takes: multiply-adds of the files, and the rate at which this machine does them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hnloader.attention import find_sites
from hnloader.attention.sites import Kind
from hnloader.network import SIDES, Architecture, Hypernetwork, LayerKind
from lab.benchmarks._measure import timed
from lab.benchmarks._models import DEVICE, Subject


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
    """How fast a product of the shapes in question runs: `rows` x `width` by `width` x `hidden`."""

    rows: int
    width: int
    hidden: int
    flops: float


# Rows at a time: what lies between two passes is then in the processor's cache, as in hnloader's own way.
_BLOCK = 1024


def _quickest(action: Callable[[], object], repeats: int = 9) -> float:
    """Seconds of the quickest of some runs."""
    return min(timed(action).wall for _ in range(repeats + 1))


def _pieces(rows: int) -> tuple[int, float]:
    """Rows of one piece, and how many such pieces there are. A GPU takes all at once."""
    piece = min(rows, _BLOCK) if DEVICE.type == "cpu" else rows
    return piece, rows / piece


def matmul_rate(rows: int, width: int, hidden: int, dtype: torch.dtype) -> Rate:
    """Measure it, into memory that is there already; two operations per multiply-add."""
    piece, _ = _pieces(rows)
    x = torch.randn(piece, width, device=DEVICE, dtype=dtype)
    weight = torch.randn(hidden, width, device=DEVICE, dtype=dtype)
    out = torch.empty(piece, hidden, device=DEVICE, dtype=dtype)
    seconds = _quickest(lambda: torch.mm(x, weight.t(), out=out))
    return Rate(rows, width, hidden, 2 * piece * width * hidden / seconds)


def pass_seconds(kind: LayerKind, rows: int, width: int, dtype: torch.dtype) -> float:
    """What an activation or a norm over so many values takes; nothing for a dropout, which is off."""
    piece, pieces = _pieces(rows)
    x = torch.randn(piece, width, device=DEVICE, dtype=dtype)
    if kind == "norm":
        scale = torch.ones(width, device=DEVICE, dtype=dtype)
        return pieces * _quickest(lambda: functional.layer_norm(x, (width,), scale, scale))
    return pieces * _quickest(x.relu_) if kind == "activation" else 0.0


@dataclass(frozen=True)
class Bound:
    """The products of a file at the layers of a model.

    Attributes:
        live: Multiply-adds per step when every side is computed at every layer.
        needed: Those that no exact way leaves out: of sides with an activation or a norm, in self-attention. Affine
            sides can be folded, and the contexts of cross-attention are the same in every step.
        seconds: What `needed` takes at the measured rates, with the activations and norms between the products; each
            pass by itself, its values in the processor's cache.
        rates: The rates of the products.
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
    rates: list[Rate] = []
    for load in loads(subject):
        for hypernetwork in hypernetworks:
            count = multiply_adds(hypernetwork, load.width) * load.rows * load.layers
            live += count
            architecture = hypernetwork.architecture
            if load.kind == "self" and count and architecture is not None and not architecture.affine:
                needed += count
                seconds += load.layers * _side_seconds(architecture, load, dtype, rates) * len(SIDES)
    return Bound(live, needed, seconds, tuple(rates))


def _side_seconds(architecture: Architecture, load: Load, dtype: torch.dtype, rates: list[Rate]) -> float:
    """One side of a file at one layer; rates that were measured are taken from `rates`, new ones put there."""
    seconds = 0.0
    for spec in architecture.layers(load.width):
        if spec.kind != "linear":
            seconds += pass_seconds(spec.kind, load.rows, spec.outputs, dtype)
            continue
        place = (load.rows, spec.inputs, spec.outputs)
        known = next((rate for rate in rates if (rate.rows, rate.width, rate.hidden) == place), None)
        if known is None:
            known = matmul_rate(*place, dtype)
            rates.append(known)
        seconds += 2 * load.rows * spec.inputs * spec.outputs / known.flops
    return seconds
