"""Apply another hypernetwork to each row of a batch while a predictor is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hnloader.attention.layout import AttentionSite, find_sites
from hnloader.attention.output_rows import Rows
from hnloader.network import SideName
from hnloader.prediction.predictor import PredictedSide
from hnloader.scopes import Scope

Sides = Mapping[tuple[Scope, SideName], PredictedSide]


class RowHooks:
    """Hooks on the projections for keys and values of a model. `attach` has one hypernetwork for all rows.

    Args:
        network: A UNet or a language model.
    """

    def __init__(self, network: nn.Module) -> None:
        self._sites = find_sites(network)
        self._sides: Sides | None = None
        self._scopes: list[Scope] = []

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Have hooks on the projections while this is active."""
        handles = []
        for site in self._sites:
            for slot in site.slots_in_use:
                if (module := site.module._modules.get(slot)) is None:  # a UNet has it only after fusing
                    continue
                rows = site.slots[slot]
                if len(rows.sides) == 1:
                    handles.append(module.register_forward_pre_hook(self._single(site, rows.sides[0])))
                else:
                    handles.append(module.register_forward_hook(self._fused(site, rows)))
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

    def _single(self, site: AttentionSite, side: SideName | None) -> Callable[..., Any]:
        """Return a hook on the projection of one side."""

        def hook(module: nn.Module, given: tuple[Any, ...]) -> Any:
            changed = self._changed(site, side, given[0])
            return None if changed is None else (changed, *given[1:])

        return hook

    def _fused(self, site: AttentionSite, rows: Rows) -> Callable[..., Any]:
        """Return a hook on a projection of several parts, which also projects the context of each side."""

        def hook(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
            contexts = [self._changed(site, side, given[0]) for side in rows.sides]
            if all(context is None for context in contexts):
                return None
            # Not a call: it would run this hook again.
            outputs = [output if context is None else module.forward(context, *given[1:]) for context in contexts]
            return rows.join([rows.split(each, -1)[index] for index, each in enumerate(outputs)], -1)

        return hook

    def _changed(self, site: AttentionSite, side: SideName | None, context: Tensor) -> Tensor | None:
        """Return the changed context [rows, tokens, width]; None if nothing acts on it."""
        scope = next((each for each in self._scopes if each.holds(site.width, site.kind, site.index)), None)
        if side is None or scope is None or self._sides is None:
            return None
        return self._sides[scope, side](context.float()).to(context.dtype)
