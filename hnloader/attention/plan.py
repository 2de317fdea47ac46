"""Choose how a chain of hypernetworks is computed at a site: in the cheapest way that gives the same result.

`fold`: the end of the chain is affine (no activation, no norm) and becomes part of the projection's matrix.
`collapse`: the chain is affine but the projection belongs to another program: one matrix before the projection.
`cache`: the context is the text, which stays the same between steps: one computation per text.
`live`: computed in each step, in as few passes as possible.
`exact`: computed in each step as the original programs do, on request or because its parameters are trained.
`none`: no hypernetwork acts here now.

All agree with `exact` within 1e-5 of the largest value in float32; docs/plans.md has the bounds for other dtypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from hnloader.attention.kernels import by_rows
from hnloader.attention.stages import AffineStage, Chain, ExactStage, Link, LiveStage, MaskedStage, Stage
from hnloader.network import Side, SideName, linear_layers
from hnloader.scopes import Kind

PlanName = Literal["fold", "collapse", "cache", "live", "exact", "none"]


@dataclass(frozen=True, eq=False)
class SidePlan:
    """The plan for the k or the v side of a chain at the sites of a kind.

    Attributes:
        chain: The chain.
        name: Name of the plan. `fold` if the chain allows it; each projection decides whether it has a fold.
        why: Reason for the user, one line.
        stages: Stages that run on the context at every projection.
        tail: Stages that run after them at projections without a fold.
        foldable: The affine end of the chain that may be folded, or an empty chain.
        side: Side of the hypernetworks.
    """

    chain: Chain
    name: PlanName
    why: str
    stages: tuple[Stage, ...] = ()
    tail: tuple[Stage, ...] = ()
    foldable: Chain = ()
    side: SideName = "k"

    @property
    def width(self) -> int:
        """Width of the context."""
        return self.chain[0].scope.width

    @cached_property
    def live(self) -> tuple[Stage, ...]:
        """The stages of a projection without a fold."""
        return (*self.stages, *self.tail)

    def __call__(self, context: Tensor) -> Tensor:
        """Return the context [..., width] for a projection without a fold."""
        for stage in self.live:
            context = stage(context)
        return context

    def fast(self, context: Tensor) -> Tensor:
        """Do the same without gradients, autocast and compiler; the caller checks that all are off."""
        for stage in self.live:
            context = stage.fast(context)
        return context

    def before_fold(self, context: Tensor) -> Tensor:
        """Return the context [..., width] for a projection with `foldable` folded into it."""
        for stage in self.stages:
            context = stage(context)
        return context

    @property
    def kept_bytes(self) -> int:
        """Bytes of kept results, beyond the hypernetworks' parameters and copies and beyond folds."""
        return sum(stage.kept_bytes for stage in self.live)


NO_PLAN = SidePlan((), "none", "nothing acts here now")


def make_plan(chain: Chain, side: SideName, kind: Kind) -> SidePlan:
    """Return the plan that a chain allows at the sites of a kind."""
    if not chain:
        return NO_PLAN
    if any(_must_be_exact(link, side) for link in chain):
        stages = tuple(_single(link, side) for link in chain)
        return SidePlan(chain, "exact", _why_exact(chain), stages, side=side)
    if kind == "cross":
        stages = _singles(chain, side)
        return SidePlan(chain, "cache", "hypernetworks run once for each text", stages, side=side)
    runs = [(affine, tuple(run)) for affine, run in groupby(chain, lambda link: _is_affine(link, side))]
    staged = [_stretch(run, side) if affine else _singles(run, side) for affine, run in runs]
    before = tuple(stage for stages in staged[:-1] for stage in stages)
    affine, last = runs[-1]
    if affine and all(link.fold for link in last):
        if before:
            why = f"{_why_live(chain, side)}; what follows without is folded"
            return SidePlan(chain, "live", why, before, staged[-1], last, side)
        return SidePlan(chain, "fold", "no activation and no norm", (), staged[-1], last, side)
    stages = (*before, *staged[-1])
    if len(stages) == 1 and isinstance(stages[0], AffineStage):
        return SidePlan(chain, "collapse", _why_live(chain, side), stages, side=side)
    return SidePlan(chain, "live", _why_live(chain, side), stages, side=side)


def _single(link: Link, side: SideName) -> Stage:
    """Return the stage of one hypernetwork."""
    kind = ExactStage if _must_be_exact(link, side) or not by_rows(link.side(side)) else LiveStage
    return kind(link, side) if link.mask is None else MaskedStage(kind(link, side), link.mask)


def _singles(links: Chain, side: SideName) -> tuple[Stage, ...]:
    return tuple(_single(link, side) for link in links)


def _stretch(links: Chain, side: SideName) -> tuple[Stage, ...]:
    """Return affine hypernetworks as one matrix if that takes fewer multiply-adds than one after the other."""
    apart = sum(multiply_adds(link.side(side)) for link in links)
    if links[0].scope.width ** 2 < apart:
        return (AffineStage(links, side),)
    return _singles(links, side)


def multiply_adds(side: Side) -> int:
    """Count the multiply-adds of a side per context, module by module."""
    return sum(layer.weight.numel() for layer in linear_layers(side))


def _is_affine(link: Link, side: SideName) -> bool:
    return link.mask is None and is_affine(link.side(side))


def is_affine(side: Side) -> bool:
    """Return True if a side is one affine map; the meta device makes the check free."""
    return side.affine_map(torch.float32, "meta") is not None


def _must_be_exact(link: Link, side: SideName) -> bool:
    return link.exact or any(p.requires_grad for p in link.side(side).parameters())


def _why_exact(chain: Chain) -> str:
    return "asked for (exact=True)" if any(link.exact for link in chain) else "its parameters are trained"


def _why_live(chain: Chain, side: SideName) -> str:
    """Return the reason against a fold."""
    for link in chain:
        if link.mask is not None:
            return "it acts on some tokens of this call"
        if not is_affine(link.side(side)):
            found = link.hypernetwork.architecture
            words = [] if found is None else [found.activation or "", "layer norm" if found.norm else ""]
            return f"{' and '.join(filter(None, words)) or 'activations or norms'} between the layers"
    return "folding is off"
