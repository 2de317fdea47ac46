"""The hooks that apply hypernetworks to the projections of an attention layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hnloader.attention.plans import NO_PLAN, SidePlan
from hnloader.attention.stages import Chain, compiling
from hnloader.network import SideName


class SideHook:
    """Forward pre-hook on `to_k` or `to_v`: the context goes through a chain of hypernetworks first.

    Attributes:
        side: Which side of the hypernetworks.
        plan: How the chain is computed. That of an empty chain lets the context pass unchanged.
        idle: The projection's own forward does it.
        contexts: How many contexts came last, None before the first.
    """

    def __init__(self, side: SideName) -> None:
        self.side: SideName = side
        self.plan: SidePlan = NO_PLAN
        self.idle = False
        self.contexts: int | None = None

    def __getstate__(self) -> dict[str, object]:
        """Copy nothing of what is attached; the injector of a copied model hooks its layers itself."""
        return {**self.__dict__, "plan": NO_PLAN}

    @property
    def chain(self) -> Chain:
        """Hypernetworks with their strengths, in order."""
        return self.plan.chain

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Called by torch before the module's forward, with what the module was called with."""
        if self.idle or not self.plan.chain:
            return None
        if args:
            return (self.apply(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))  # a processor that calls to_k(input=context)
        return args, {**kwargs, name: self.apply(kwargs[name])}

    def apply(self, context: Tensor) -> Tensor:
        """The context [..., width] that the projection is to receive; same shape, dtype and device."""
        if not compiling():
            self.contexts = context.numel() // context.shape[-1]
        return self.plan(context)


class FusedHook:
    """Forward hook on `to_qkv` or `to_kv`: keys and values are computed anew from the changed contexts.

    A fused projection takes one context for both, and a hypernetwork gives two. The projection's own forward
    is called for each, so that whatever happens in it (LoRA, offloading, quantised weights) happens there
    too.

    Args:
        parts: Into how many equal parts the processor splits the output: 3 for `to_qkv`, 2 for `to_kv`.
        k: The hook of `to_k`, whose plan is used.
        v: The hook of `to_v`.

    Attributes:
        idle: The projection's own forward does it.
    """

    def __init__(self, parts: int, k: SideHook, v: SideHook) -> None:
        self.parts = parts
        self.k = k
        self.v = v
        self.idle = False

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Called by torch after the forward; `output` is [..., parts * inner width]."""
        if self.idle or not (self.k.plan.chain or self.v.plan.chain):
            return None
        context = args[0] if args else next(iter(kwargs.values()))
        *query, key, value = output.chunk(self.parts, dim=-1)
        if self.k.plan.chain:
            key = module.forward(self.k.apply(context)).chunk(self.parts, dim=-1)[-2]
        if self.v.plan.chain:
            value = module.forward(self.v.apply(context)).chunk(self.parts, dim=-1)[-1]
        return torch.cat([*query, key, value], dim=-1)
