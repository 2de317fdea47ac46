"""A chain of hypernetworks at one attention layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hnloader.affine import AffineMap
from hnloader.attention.attach import Application
from hnloader.attention.layout import AttentionSite
from hnloader.attention.strengths import site_strengths
from hnloader.network import Hypernetwork, SideName
from hnloader.scopes import Scope

__all__ = ["Chain", "Links"]

Links = tuple[tuple[Hypernetwork, Scope, float], ...]


class Chain:
    """The effect of some applications on the contexts of a model's attention layers."""

    def __init__(self, applications: Sequence[Application], sites: Sequence[AttentionSite]) -> None:
        self._applied = [
            (application, application.hypernetwork, site_strengths(application.strength, sites))
            for application in applications
        ]
        self._maps: dict[tuple[int, SideName, Links], AffineMap | None] = {}

    def links(self, site: AttentionSite, side: SideName) -> Links:
        """Return the hypernetworks that act on one side of a site, in order, with their strengths."""
        found = []
        for application, hypernetwork, strengths in self._applied:
            strength = strengths[site.index] * (application.k if side == "k" else application.v)
            assert isinstance(hypernetwork, Hypernetwork)
            scope = hypernetwork.scope_at(site.width, site.kind, site.index)
            if scope is not None and strength != 0:
                found.append((hypernetwork, scope, strength))
        return tuple(found)

    def apply(self, site: AttentionSite, side: SideName, context: Tensor) -> Tensor:
        """Return `context` [..., width] as the projection of this side receives it, in its shape and dtype."""
        for hypernetwork, scope, strength in self.links(site, side):
            context = hypernetwork.transform(side, context, strength, scope)
        return context

    def change(self, site: AttentionSite, side: SideName, context: Tensor) -> Tensor:
        """Return the addition to `context` [..., width] in float64, computed in float32."""
        context = context.float()
        with torch.no_grad():
            return self.apply(site, side, context).double() - context.double()

    def affine(self, site: AttentionSite, side: SideName) -> AffineMap | None:
        """Return `change` as one map in float64, or None if a hypernetwork is not affine there."""
        links = self.links(site, side)
        key = (site.width, side, links)
        if key not in self._maps:
            self._maps[key] = _composed(links, site.width, side)
        return self._maps[key]


def _composed(links: Links, width: int, side: SideName) -> AffineMap | None:
    """Compose all links and subtract the context: h2(h1(c)) - c."""
    change: AffineMap | None = None
    for hypernetwork, scope, strength in links:
        step = hypernetwork.side(scope, side).affine_map()
        if step is None:
            return None
        step = step.scaled(strength)
        # h2(h1(c)) - c = change1(c) + step2(c + change1(c))
        identity = AffineMap.identity(width, torch.float64)
        change = step if change is None else change + (identity + change).then(step)
    return change
