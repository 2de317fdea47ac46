"""Which way a chain of hypernetworks is computed at a site: the cheapest one that gives the same.

`fold`: the end of the chain is affine (no activation, no norm) and becomes part of the projection's matrix.
`collapse`: the chain is affine but the projection is not ours to change: one matrix before it.
`cache`: the context is the text, which stays the same from step to step: computed once per text.
`live`: computed in each step, in as few passes as possible.
`exact`: computed in each step as the original programs do: asked for, or its parameters are trained.
`none`: nothing acts here now.

All of them agree with `exact` within 1e-5 of the largest value in float32; docs/plans.md has the bounds for the
other dtypes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from hnloader.attention.sites import Kind
from hnloader.attention.stages import AffineStage, CachedStages, Chain, ExactStage, Link, LiveStage, Stage, by_rows
from hnloader.network import Hypernetwork, Side, SideName

PlanName = Literal["fold", "collapse", "cache", "live", "exact", "none"]


@dataclass(frozen=True, eq=False)
class SidePlan:
    """How the k or the v side of a chain is computed at the sites of a width and kind.

    Attributes:
        chain: What is computed.
        name: The plan. `fold` says that the chain allows it; whether the projection does is found at each site.
        why: One line for the user.
        stages: What runs on the context, in order, whatever the projection is.
        tail: What runs after them where `foldable` is not folded into the projection.
        foldable: The affine end of the chain that may be folded; empty without one.
        side: Which side.
        width: Of the context.
    """

    chain: Chain
    name: PlanName
    why: str
    stages: tuple[Stage, ...] = ()
    tail: tuple[Stage, ...] = ()
    foldable: Chain = ()
    side: SideName = "k"
    width: int = 0

    def __call__(self, context: Tensor) -> Tensor:
        """The context [..., width] that a projection is to receive that has nothing folded into it."""
        for stage in (*self.stages, *self.tail):
            context = stage(context)
        return context

    def before_fold(self, context: Tensor) -> Tensor:
        """The context [..., width] that a projection is to receive that has `foldable` folded into it."""
        for stage in self.stages:
            context = stage(context)
        return context

    def prepare(self, device: torch.device, dtype: torch.dtype, *, folded: bool) -> None:
        """Make what contexts of this dtype on this device need."""
        for stage in self.stages if folded else (*self.stages, *self.tail):
            stage.prepare(device, dtype)

    def compare_again(self) -> None:
        """Have each kept result compared with its context when it is used next."""
        for stage in self.stages:
            if isinstance(stage, CachedStages):
                stage.compare_again()

    @property
    def kept_bytes(self) -> int:
        """Bytes kept beyond the hypernetworks' own parameters and copies, and beyond what is folded."""
        return sum(stage.kept_bytes for stage in (*self.stages, *self.tail))


NO_PLAN = SidePlan((), "none", "nothing acts here now")


def make_plan(chain: Chain, side: SideName, width: int, kind: Kind) -> SidePlan:
    """The plan of a chain at the sites of a width and kind; what it allows, not yet what a projection allows."""
    if not chain:
        return NO_PLAN
    if any(_must_be_exact(link, side, width) for link in chain):
        stages = tuple(_single(link, side, width) for link in chain)
        return SidePlan(chain, "exact", _why_exact(chain), stages, side=side, width=width)
    if kind == "cross":
        stages = (CachedStages(tuple(_single(link, side, width) for link in chain)),)
        return SidePlan(chain, "cache", "the text stays the same between steps", stages, side=side, width=width)
    runs = [(affine, tuple(run)) for affine, run in groupby(chain, lambda link: _is_affine(link, side, width))]
    staged = [_stretch(run, side, width) if affine else _singles(run, side, width) for affine, run in runs]
    before = tuple(stage for stages in staged[:-1] for stage in stages)
    affine, last = runs[-1]
    if affine and all(link.fold for link in last):
        if before:
            why = f"{_why_live(chain, side, width)}; what follows without is folded"
            return SidePlan(chain, "live", why, before, staged[-1], last, side, width)
        return SidePlan(chain, "fold", "no activation, no norm", (), staged[-1], last, side, width)
    stages = (*before, *staged[-1])
    if len(stages) == 1 and isinstance(stages[0], AffineStage):
        why = "no activation, no norm; the weights belong to the host"
        return SidePlan(chain, "collapse", why, stages, side=side, width=width)
    return SidePlan(chain, "live", _why_live(chain, side, width), stages, side=side, width=width)


def _single(link: Link, side: SideName, width: int) -> Stage:
    """One hypernetwork by itself."""
    if _must_be_exact(link, side, width) or not by_rows(link.hypernetwork.side(width, side)):
        return ExactStage(link, side, width)
    return LiveStage(link, side, width)


def _singles(links: Chain, side: SideName, width: int) -> tuple[Stage, ...]:
    return tuple(_single(link, side, width) for link in links)


def _stretch(links: Chain, side: SideName, width: int) -> tuple[Stage, ...]:
    """Affine hypernetworks as one matrix, where that takes fewer multiply-adds than one after the other."""
    apart = sum(multiply_adds(link.hypernetwork.side(width, side)) for link in links)
    if width * width < apart:
        return (AffineStage(links, side, width),)
    return _singles(links, side, width)


def multiply_adds(side: Side) -> int:
    """Multiply-adds of a side per context, module by module."""
    return sum(module.weight.numel() for module in side.modules() if isinstance(module, nn.Linear))


def _is_affine(link: Link, side: SideName, width: int) -> bool:
    return is_affine(link.hypernetwork.side(width, side))


def is_affine(side: Side) -> bool:
    """Whether a side is one affine map, found on the meta device, where it costs nothing."""
    return side.affine_map(torch.float32, "meta") is not None


def _must_be_exact(link: Link, side: SideName, width: int) -> bool:
    return link.exact or any(p.requires_grad for p in link.hypernetwork.side(width, side).parameters())


def _why_exact(chain: Chain) -> str:
    return "asked for (exact=True)" if any(link.exact for link in chain) else "its parameters are trained"


def _why_live(chain: Chain, side: SideName, width: int) -> str:
    """What stands against one matrix, of the first hypernetwork that is not affine."""
    for link in chain:
        if not is_affine(link.hypernetwork.side(width, side)):
            found = link.hypernetwork.architecture
            words = [] if found is None else [found.activation or "", "layer norm" if found.norm else ""]
            what = " and ".join(filter(None, words)) or "activations or norms"
            return f"{what} between the layers, and a context that changes in each step"
    return "a context that changes in each step"


class Signature:
    """Tells when parameters of hypernetworks are replaced, converted, changed in place, or trained from now on.

    Modules that are put in the place of others count too.
    """

    def __init__(self, hypernetworks: Iterable[Hypernetwork]) -> None:
        modules = [module for hypernetwork in hypernetworks for module in hypernetwork.modules()]
        self._parameters = [module._parameters for module in modules if module._parameters]
        self._children = [module._modules for module in modules if module._modules]
        self.value = self._now()

    def changed(self) -> bool:
        """Whether something happened since this was made."""
        return self._now() != self.value

    def _now(self) -> list[object]:
        children: list[object] = [child for children in self._children for child in children.values()]
        return children + [
            None if p is None else (id(p), p.data_ptr(), p.requires_grad, -1 if p.is_inference() else p._version)
            for parameters in self._parameters
            for p in parameters.values()
        ]
