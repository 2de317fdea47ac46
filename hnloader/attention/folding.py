"""Fold the affine end of a chain into the matrix of a projection.

A fold is a second matrix beside that of the module: K = (Wk (I + s A)) c + (bk + s Wk a). The module's parameters never
change, so nothing has to be restored, and `state_dict`, training and saving see the originals. The cost is one copy of
each projection with a fold.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.affine import AffineMap
from hnloader.attention.changes import Watch, versions
from hnloader.attention.decoders import is_transposed
from hnloader.attention.kernels import HALF, wide
from hnloader.attention.output_rows import Rows
from hnloader.attention.plan import SidePlan
from hnloader.attention.stages import Chain, own_modes, stretch_map, tensor_bytes

# The rounding of a fold may grow by this factor when new strengths are worked into it.
MOST_GROWTH = 32.0
# Contexts that check a fold.
PROBES = 8


# By the plan and the weight's dtype and device; all sites of a plan share a stretch.
Maps: TypeAlias = "dict[tuple[SidePlan, torch.dtype, torch.device], _Stretch]"
Plans: TypeAlias = "tuple[SidePlan | None, ...]"


@dataclass(frozen=True)
class Fold:
    """A matrix with a chain folded into it.

    Attributes:
        weight: [outputs, inputs], of the module's dtype.
        bias: [outputs], of the module's dtype.
        chains: The chain in each part of the outputs.
        growth: Rounding relative to a new fold.
    """

    weight: Tensor
    bias: Tensor
    chains: tuple[Chain, ...]
    versions: list[object]
    watch: Watch
    growth: float = 1.0

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return tensor_bytes(self.weight, self.bias)

    def outdated(self, module: nn.Module) -> bool:
        """Return True if the module has other parameters or values now."""
        return self.versions != versions(module) or self.watch.changed()


def fold_into(
    module: nn.Module, plans: Plans, rows: Rows, maps: Maps, old: Fold | None, *, in_place: bool
) -> Fold | str:
    """Fold the ends of chains into the matrix of a projection.

    Args:
        module: A Linear.
        plans: Plan of each part of the outputs; None for a part that stays (the queries).
        rows: The parts of the outputs.
        maps: Stretches that other projections made, to share.
        old: The last fold of the same weights and values of hypernetworks.
        in_place: The memory of `old` may be used.

    Returns:
        The fold, or the reason against it.
    """
    chains = tuple(() if plan is None else plan.foldable for plan in plans)
    if old is not None and old.chains == chains:
        return old
    with own_modes(_tensors(module)[0].device):
        rescaled = _rescaled(old, chains, module) if old is not None and in_place else None
        if rescaled is not None:
            return rescaled
        try:
            fold = _make(module, plans, rows, chains, maps)
            return _too_rough(fold, plans, rows, module, maps) or fold
        except (MemoryError, torch.cuda.OutOfMemoryError):
            return "the memory does not hold a copy of its weight"


def _tensors(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the weight [outputs, inputs] and the bias of a projection."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None, "a plain projection has a weight"
    matrix = weight.detach().t() if is_transposed(module) else weight.detach()
    return matrix, None if bias is None else bias.detach()


def _make(module: nn.Module, plans: Plans, rows: Rows, chains: tuple[Chain, ...], maps: Maps) -> Fold:
    """Make a fold in float32 (float64 for a float64 module), rounded once to the module's dtype."""
    weight, bias = _tensors(module)
    whole_bias = weight.new_zeros(len(weight)) if bias is None else bias
    weights, biases = rows.split(weight, 0), rows.split(whole_bias, 0)
    for number, plan in enumerate(plans):
        if plan is not None and plan.foldable:
            inner, own = _stretch(plan, weight, maps).map, weights[number].to(wide(weight.dtype))
            weights[number] = (own @ inner.matrix).to(weight.dtype)
            biases[number] = (inner.bias @ own.T + biases[number]).to(weight.dtype)
    watch = Watch(tensor.detach() for tensor in module._parameters.values() if tensor is not None)
    return Fold(rows.join(weights, 0), rows.join(biases, 0), chains, versions(module), watch)


@dataclass(frozen=True)
class _Stretch:
    """The affine map of a fold, and the exact result for the contexts that check it.

    Attributes:
        map: In float32, or float64 for a float64 model.
        changed: [PROBES, width], the contexts after the hypernetworks, in the dtype of `map`.
    """

    map: AffineMap
    changed: Tensor


def _stretch(plan: SidePlan, weight: Tensor, maps: Maps) -> _Stretch:
    key = (plan, weight.dtype, weight.device)
    if key not in maps:
        dtype = wide(weight.dtype)
        inner = stretch_map(plan.foldable, plan.side, dtype, weight.device)
        changed = _probes(plan.width, weight).to(dtype)
        for link in plan.foldable:
            stored = link.side(plan.side)
            changed = copy.deepcopy(stored).to(weight.device, dtype)(changed, link.strength)
        maps[key] = _Stretch(inner, changed)
    return maps[key]


def _probes(width: int, like: Tensor) -> Tensor:
    return torch.randn(PROBES, width, generator=torch.Generator().manual_seed(0)).to(like)


def _rescaled(old: Fold, chains: tuple[Chain, ...], module: nn.Module) -> Fold | None:
    """Work a new strength into the fold of one hypernetwork: W + r (W' - W).

    Its rounding grows with the ratio r of the strengths. Return None if it grows too much, if more than a strength
    changed, or in half precision.
    """
    pairs = [pair for pair in zip(old.chains, chains, strict=True) if any(pair)]
    if old.weight.dtype in HALF or any(len(before) != 1 or len(new) != 1 for before, new in pairs):
        return None
    links = [(before[0], new[0]) for before, new in pairs]
    if any(before.hypernetwork is not new.hypernetwork for before, new in links):
        return None
    ratios = {new.strength / before.strength for before, new in links}
    ratio = ratios.pop()
    growth = math.sqrt(ratio**2 * (old.growth**2 + 1) + 1)
    if ratios or growth > MOST_GROWTH:
        return None
    weight, bias = _tensors(module)
    torch.lerp(weight, old.weight, ratio, out=old.weight)
    torch.lerp(torch.zeros_like(old.bias) if bias is None else bias, old.bias, ratio, out=old.bias)
    return replace(old, chains=chains, growth=growth)


def _too_rough(fold: Fold, plans: Plans, rows: Rows, module: nn.Module, maps: Maps) -> str:
    """Return a reason if a fold is worse than the exact result on contexts of unit variance, else an empty text.

    In float32 and float64 both must agree within a fifth of 1e-5, the bound of all plans. In half precision the root
    mean square error against float32 may be twice the rounding error of the exact result.
    """
    weight, bias = _tensors(module)
    biases = [None] * len(plans) if bias is None else rows.split(bias, 0)
    folded = rows.split(functional.linear(_probes(weight.shape[1], weight), fold.weight, fold.bias), -1)
    for plan, result, w, b in zip(plans, folded, rows.split(weight, 0), biases, strict=True):
        if plan is not None and plan.foldable:
            changed = _stretch(plan, weight, maps).changed
            exact = functional.linear(changed, w.to(changed), None if b is None else b.to(changed))
            error = (result.to(exact) - exact).abs()
            if exact.dtype == weight.dtype:
                good = error.max() <= 2e-6 * exact.abs().max()
            else:
                rounded = functional.linear(changed.to(weight), w, b).to(exact)
                good = error.square().mean() <= 4 * (rounded - exact).square().mean()
            if not good:
                return "its matrix would round too much"
    return ""
