"""Compute the time that the arithmetic needs: multiply-adds of the files, and the speed of this machine."""

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
    """The number of layers of a kind whose contexts have a width and a number of rows."""

    kind: Kind
    width: int
    rows: int
    layers: int


def loads(subject: Subject) -> list[Load]:
    """Return the contexts of a step, found by running it. Rows are batch times tokens."""
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
    """Return the multiply-adds of the k and v sides for one row of a context, in matrix products only."""
    if width not in hypernetwork.widths or hypernetwork.architecture is None:
        return 0
    specs = hypernetwork.architecture.layers(width)
    return 2 * sum(spec.inputs * spec.outputs for spec in specs if spec.kind == "linear")


@dataclass(frozen=True)
class Rate:
    """The measured speed of the product `rows` x `width` by `width` x `hidden`."""

    rows: int
    width: int
    hidden: int
    flops: float


_BLOCK = 1024  # rows at a time, so that intermediate values stay in the processor's cache, as in hnloader


def _quickest(action: Callable[[], object], repeats: int = 9) -> float:
    """Return the seconds of the fastest run."""
    return min(timed(action).wall for _ in range(repeats + 1))


def _pieces(rows: int) -> tuple[int, float]:
    """Return the rows of a block and the number of blocks. A GPU computes all rows at once."""
    piece = min(rows, _BLOCK) if DEVICE.type == "cpu" else rows
    return piece, rows / piece


def matmul_rate(rows: int, width: int, hidden: int, dtype: torch.dtype) -> Rate:
    """Measure a product into preallocated memory, with two operations per multiply-add."""
    piece, _ = _pieces(rows)
    x = torch.randn(piece, width, device=DEVICE, dtype=dtype)
    weight = torch.randn(hidden, width, device=DEVICE, dtype=dtype)
    out = torch.empty(piece, hidden, device=DEVICE, dtype=dtype)
    seconds = _quickest(lambda: torch.mm(x, weight.t(), out=out))
    return Rate(rows, width, hidden, 2 * piece * width * hidden / seconds)


def pass_seconds(kind: LayerKind, rows: int, width: int, dtype: torch.dtype) -> float:
    """Return the seconds of an activation or a norm; 0 for dropout, which is off."""
    piece, pieces = _pieces(rows)
    x = torch.randn(piece, width, device=DEVICE, dtype=dtype)
    if kind == "norm":
        scale = torch.ones(width, device=DEVICE, dtype=dtype)
        return pieces * _quickest(lambda: functional.layer_norm(x, (width,), scale, scale))
    return pieces * _quickest(x.relu_) if kind == "activation" else 0.0


@dataclass(frozen=True)
class Bound:
    """The arithmetic of files on a model.

    Attributes:
        live: Multiply-adds per step if every side is computed at every layer.
        needed: Multiply-adds that every exact way needs: sides with an activation or a norm, in self-attention. Affine
            sides can be folded, and contexts of cross-attention are equal in all steps.
        seconds: Time of `needed` at the measured rates, plus the activations and norms between the products.
        rates: The rates of the products.
    """

    live: int
    needed: int
    seconds: float
    rates: tuple[Rate, ...]


def bound(subject: Subject, hypernetworks: Sequence[Hypernetwork]) -> Bound:
    """Return the arithmetic of files on a model."""
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
    """Return the seconds of one side at one layer; `rates` caches the measured rates."""
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
