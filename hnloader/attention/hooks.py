"""The hooks that apply hypernetworks to the projections of an attention layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hnloader.attention.plans import NO_PLAN, SidePlan
from hnloader.attention.stages import compiling
from hnloader.network import SideName


class SideHook:
    """Forward pre-hook on `to_k` or `to_v` that sends the context through a chain of hypernetworks.

    Attributes:
        side: Side of the hypernetworks.
        plan: Way in which the chain is computed. The plan of an empty chain returns the context.
        idle: True if the projection's forward applies the chain instead.
        contexts: Number of contexts in the last call, None before the first.
    """

    def __init__(self, side: SideName) -> None:
        self.side: SideName = side
        self.plan: SidePlan = NO_PLAN
        self.idle = False
        self.contexts: int | None = None

    def __getstate__(self) -> dict[str, object]:
        """Copy no plan; the injector of a copied model hooks its layers itself."""
        return {**self.__dict__, "plan": NO_PLAN}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change the context before the module's forward; torch passes the arguments of the call."""
        if self.idle or not self.plan.chain:
            return None
        if args:
            return (self.apply(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))  # a processor that calls to_k(input=context)
        return args, {**kwargs, name: self.apply(kwargs[name])}

    def apply(self, context: Tensor) -> Tensor:
        """Return the context [..., width] for the projection; same shape, dtype and device."""
        if not compiling():
            self.contexts = context.numel() // context.shape[-1]
        return self.plan(context)


class FusedHook:
    """Forward hook on `to_qkv` or `to_kv` that computes keys and values again from the changed contexts.

    A fused projection takes one context for both, but a hypernetwork gives two. So the hook calls the projection's
    forward for each. LoRA, offloading and quantized weights in that forward then work for both.

    Args:
        parts: Number of equal parts in the output: 3 for `to_qkv`, 2 for `to_kv`.
        k: Hook of `to_k`, with the plan for the keys.
        v: Hook of `to_v`, with the plan for the values.

    Attributes:
        idle: True if the projection's forward applies the chains instead.
    """

    def __init__(self, parts: int, k: SideHook, v: SideHook) -> None:
        self.parts = parts
        self.k = k
        self.v = v
        self.idle = False

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Replace keys and values in the output [..., parts * inner width] of the module's forward."""
        if self.idle or not (self.k.plan.chain or self.v.plan.chain):
            return None
        context = args[0] if args else next(iter(kwargs.values()))
        *query, key, value = output.chunk(self.parts, dim=-1)
        if self.k.plan.chain:
            key = module.forward(self.k.apply(context)).chunk(self.parts, dim=-1)[-2]
        if self.v.plan.chain:
            value = module.forward(self.v.apply(context)).chunk(self.parts, dim=-1)[-1]
        return torch.cat([*query, key, value], dim=-1)
