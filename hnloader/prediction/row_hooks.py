"""Apply another hypernetwork to each row of a batch while a predictor is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hnloader.attention.layout import AttentionSite, find_sites
from hnloader.network import SIDES, SideName
from hnloader.prediction.predictor import PredictedSide
from hnloader.scopes import Scope

Sides = Mapping[tuple[Scope, SideName], PredictedSide]


class RowHooks:
    """Hooks on the projections for keys and values of a UNet. `attach` has one hypernetwork for all rows."""

    def __init__(self, unet: nn.Module) -> None:
        self._sites = find_sites(unet)
        self._sides: Sides | None = None
        self._scopes: list[Scope] = []

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Have hooks on the projections while this is active."""
        handles = [
            getattr(site.module, f"to_{side}").register_forward_pre_hook(self._hook(site, side))
            for site in self._sites
            for side in SIDES
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def applied(self, sides: Sides | None) -> Iterator[None]:
        """Apply these sides while this is active; None applies nothing."""
        before = self._sides, self._scopes
        self._sides, self._scopes = sides, [] if sides is None else list(dict.fromkeys(scope for scope, _ in sides))
        try:
            yield
        finally:
            self._sides, self._scopes = before

    def _hook(self, site: AttentionSite, side: SideName) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> Any:
            scope = next((each for each in self._scopes if each.holds(site.width, site.kind, site.index)), None)
            if scope is None or self._sides is None:
                return None
            context: Tensor = given[0]
            changed = self._sides[scope, side](context.float())
            return (changed.to(context.dtype), *given[1:])

        return hook
