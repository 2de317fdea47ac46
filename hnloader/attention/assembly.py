"""Decide for each projection of a model how it computes its hypernetworks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from hnloader.attention.changes import (
    Changes,
    PlainLinears,
    has_hooks,
    is_ours,
    moves_weights,
    own_forward,
    torch_linears,
)
from hnloader.attention.folding import Fold, Maps, fold_into
from hnloader.attention.layout import AttentionSite
from hnloader.attention.plan import SidePlan, make_plan
from hnloader.attention.projection import BareState, Folded, Hooked, Kept, Plans, Projection, Switch
from hnloader.attention.stages import Chain
from hnloader.attention.text_cache import TextCache
from hnloader.network import SIDES, Hypernetwork, SideName
from hnloader.scopes import Kind

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# A weight that changes more often while attached is being trained or merged; folding it again would not pay.
MOST_CHANGES = 8

# Attributes of a module, and those that it gets for the time of a call.
Replacement = tuple["dict[str, Any]", "dict[str, Any]"]


class Memory:
    """Values that a model keeps from one assembly to the next.

    Attributes:
        folds: The last folds, by projection.
        changes: How often the weights of a fold changed, by projection.
        earlier: The hooks of other programs that a projection had when hnloader first saw it.
        plans: The plans by chain, side and kind of attention.
    """

    def __init__(self) -> None:
        self.folds: dict[nn.Module, Fold] = {}
        self.changes: Counter[nn.Module] = Counter()
        self.earlier: dict[nn.Module, frozenset[int]] = {}
        self.plans: dict[tuple[Chain, SideName, Kind], SidePlan] = {}

    def plan(self, chain: Chain, side: SideName, site: AttentionSite) -> SidePlan:
        """Return the plan that all sites of a chain share."""
        key = (chain, side, site.kind)
        if key not in self.plans:
            self.plans[key] = make_plan(chain, side, site.kind)
        return self.plans[key]

    def forget_others(self, modules: Iterable[nn.Module | None]) -> None:
        """Forget everything about projections that the model no longer has."""
        present = set(modules)
        self.folds = {module: fold for module, fold in self.folds.items() if module in present}
        self.earlier = {module: hooks for module, hooks in self.earlier.items() if module in present}
        self.changes = Counter({module: count for module, count in self.changes.items() if module in present})

    def last_fold(self, module: nn.Module) -> Fold | None:
        """Return the last fold of a projection if its weight is still the same."""
        fold = self.folds.get(module)
        if fold is not None and fold.outdated(module):
            self.changes[module] += 1
            del self.folds[module]
            return None
        return fold


class Assembly:
    """The projections of a model with their states, for one set of acting hypernetworks.

    Args:
        sites: The attention layers.
        chains: The chains that act at a site, for k and v.
        surroundings: See `modules_around`.
        linears: Finds the plain projections.
        memory: What earlier assemblies left.
        in_place: The memory of earlier folds may be used.
        busy: See `Changes`.

    Attributes:
        plans: The plans of each site, by side.
        projections: The projections by site and name.
        texts: What is kept for texts.
        switch: Whether functions on modules act.
        fast: What the modules get in a call without gradients and autocast.
        careful: What they get in another call.
        hooked: The projections that get a hook.
        changes: The state of the model that this was made for.
    """

    def __init__(
        self,
        sites: Sequence[AttentionSite],
        chains: Callable[[AttentionSite, SideName], Chain],
        surroundings: Sequence[dict[str, Any]],
        linears: PlainLinears,
        memory: Memory,
        *,
        in_place: bool,
        busy: bool,
    ) -> None:
        self.plans = {site: {side: memory.plan(chains(site, side), side, site) for side in SIDES} for site in sites}
        self.hypernetworks: tuple[Hypernetwork, ...] = tuple(
            dict.fromkeys(link.hypernetwork for plan in self._all_plans() for link in plan.chain)
        )
        self.switch = Switch()
        self._is_plain, self._memory, self._in_place = linears(), memory, in_place
        self._moves = moves_weights(surroundings)
        self._maps: Maps = {}
        slots = [(site, slot) for site in sites for slot in site.slots if self._acts(site, slot)]
        self.texts = TextCache(len(slots), steady=linears is not torch_linears)
        self.projections: dict[tuple[AttentionSite, str], Projection] = {
            (site, slot): self._projection(site, slot, number) for number, (site, slot) in enumerate(slots)
        }
        del self._maps
        own = [each.module for each in self.projections.values() if each.state in ("folded", "kept")]
        self.changes = Changes(sites, surroundings, self.hypernetworks, own, linears, busy=busy)
        self.fast = [self._replacement(each, each.forward) for each in self.projections.values()]
        self.careful = [self._replacement(each, each.careful) for each in self.projections.values()]
        self.hooked = [each for each in self.projections.values() if isinstance(each, Hooked)]
        memory.forget_others(site.module._modules.get(slot) for site in sites for slot in site.slots)

    def _all_plans(self) -> Iterator[SidePlan]:
        for plans in self.plans.values():
            yield from plans.values()

    def _acts(self, site: AttentionSite, slot: str) -> bool:
        return slot in site.module._modules and any(plan is not None for plan in self._plans_of(site, slot))

    def _plans_of(self, site: AttentionSite, slot: str) -> Plans:
        plans = (None if side is None else self.plans[site][side] for side in site.slots[slot].sides)
        return tuple(None if plan is None or not plan.chain else plan for plan in plans)

    def _projection(self, site: AttentionSite, slot: str, number: int) -> Projection:
        """Return the projection in the cheapest state that is right."""
        module, plans, rows = site.module._modules[slot], self._plans_of(site, slot), site.slots[slot]
        assert module is not None
        self._memory.earlier.setdefault(module, frozenset(module._forward_pre_hooks) | frozenset(module._forward_hooks))
        why = moves_weights([module.__dict__]) or self._moves or self._why_hook(module)
        if why:
            return Hooked(module, plans, rows, self.texts, self.switch, why, self._memory.earlier[module])
        why = self._why_live(module)
        if slot not in site.slots_in_use:
            why = "the layer does not use it now"
        if not why and all(plan is not None and plan.name == "cache" for plan in plans):
            return Kept(module, plans, rows, self.texts, self.switch, number)
        if any(plan is not None and plan.foldable for plan in plans):
            last = self._memory.last_fold(module)
            fold = why or fold_into(module, plans, rows, self._maps, last, in_place=self._in_place)
            if isinstance(fold, Fold):
                self._memory.folds[module] = fold
                return Folded(module, plans, rows, self.texts, self.switch, fold)
            why = fold
        projection = Projection(module, plans, rows, self.texts, self.switch)
        projection.why_not = why
        return projection

    def _why_hook(self, module: nn.Module) -> str:
        """Return the reason why the module's own forward must run, empty if hnloader can compute the product."""
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        plain = (
            self._is_plain(module)
            and type(weight) is nn.Parameter
            and type(bias) in (nn.Parameter, type(None))
            and weight.dtype in DTYPES
        )
        if not plain:
            what = "" if weight is None else f", {str(weight.dtype).removeprefix('torch.')}"
            program = type(module).__module__.partition(".")[0]
            return f"the projection differs from a plain Linear ({program} {type(module).__name__}{what})"
        if own_forward(module.__dict__) or has_hooks(module):
            return "another program has hooks on the projection"
        return ""

    def _why_live(self, module: nn.Module) -> str:
        """Return the reason against a fold or kept results, empty if there is none."""
        if self._memory.changes[module] > MOST_CHANGES:
            return "its weight keeps changing"
        parameters = [each for each in module._parameters.values() if each is not None]
        if any(each.layout != torch.strided or not each.is_contiguous() for each in parameters):
            return "its weight is not contiguous"
        if any(each.device.type == "meta" for each in parameters):
            return "its weight is not in memory"
        return ""

    def _replacement(self, projection: Projection, forward: Callable[..., Any]) -> Replacement:
        """Return the attributes of a module during a call."""
        own, bare = projection.module.__dict__, BareState(projection.module)
        state = own.get("__getstate__")
        # Hooks, or another thread, may copy a layer in the middle of a call.
        found: dict[str, Any] = {"__getstate__": bare.state} if state is None or is_ours(state) else {}
        if not isinstance(projection, Hooked):
            found["forward"] = forward
        elif not own_forward(own) and "torch._dynamo" in sys.modules:
            found["forward"] = bare.forward
        return own, found

    def projection_of(self, site: AttentionSite, side: SideName) -> Projection | None:
        """Return the projection in use that computes a side."""
        slots = [slot for slot in site.slots_in_use if side in site.slots[slot].sides]
        found = [self.projections[site, slot] for slot in slots if (site, slot) in self.projections]
        return found[0] if found else None

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compute in advance what contexts of this dtype on this device need, since compiled code cannot."""
        for projection in self.projections.values():
            for plan in projection.plans:
                if plan is not None:
                    for stage in plan.stages if projection.fold is not None else plan.live:
                        stage.prepare(device, dtype)
