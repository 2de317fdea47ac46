"""The hooks on one attention layer, and how they get onto its modules and off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hnloader.attention.sites import AttentionSite
from hnloader.network import Hypernetwork

Chain = tuple[tuple[Hypernetwork, float], ...]

# The parts of an attention layer that receive the context. diffusers keeps to_k and to_v when it adds fused
# ones and keeps the fused ones when it goes back, so each that exists is hooked; the layer's processor calls
# one or the other.
SLOTS = ("to_k", "to_v", "to_qkv", "to_kv")


class SideHook:
    """Forward pre-hook on `to_k` or `to_v`: the context goes through a chain of hypernetworks first.

    Attributes:
        side: Which side of the hypernetworks.
        chain: Hypernetworks with their strengths, in order. Empty: the context passes unchanged.
    """

    def __init__(self, side: Literal["k", "v"]) -> None:
        self.side: Literal["k", "v"] = side
        self.chain: Chain = ()

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Called by torch before the module's forward, with what the module was called with."""
        if not self.chain:
            return None
        if args:
            return (self.apply(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))  # a processor that calls to_k(input=context)
        return args, {**kwargs, name: self.apply(kwargs[name])}

    def apply(self, context: Tensor) -> Tensor:
        """The context [..., width] that the projection is to receive; same shape, dtype and device."""
        for hypernetwork, strength in self.chain:
            context = hypernetwork.transform(self.side, context, strength)
        return context


class FusedHook:
    """Forward hook on `to_qkv` or `to_kv`: keys and values are computed anew from the changed contexts.

    A fused projection takes one context for both, and a hypernetwork gives two. The projection's own forward
    is called for each, so that whatever happens in it (LoRA, offloading, quantised weights) happens there
    too.

    Args:
        parts: Into how many equal parts the processor splits the output: 3 for `to_qkv`, 2 for `to_kv`.
        k: The hook of `to_k`, whose chain is used.
        v: The hook of `to_v`.
    """

    def __init__(self, parts: int, k: SideHook, v: SideHook) -> None:
        self.parts = parts
        self.k = k
        self.v = v

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Called by torch after the forward; `output` is [..., parts * inner width]."""
        if not self.k.chain and not self.v.chain:
            return None
        context = args[0] if args else next(iter(kwargs.values()))
        *query, key, value = output.chunk(self.parts, dim=-1)
        if self.k.chain:
            key = module.forward(self.k.apply(context)).chunk(self.parts, dim=-1)[-2]
        if self.v.chain:
            value = module.forward(self.v.apply(context)).chunk(self.parts, dim=-1)[-1]
        return torch.cat([*query, key, value], dim=-1)


class Hooked:
    """A hook on a module, until `remove`."""

    def __init__(self, module: nn.Module, hook: SideHook | FusedHook) -> None:
        if isinstance(hook, SideHook):
            self._handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            self._handle = module.register_forward_hook(hook, with_kwargs=True)
        self.module = module
        # Code that torch.compile made before does not look for hooks that came later, but it does check that
        # a module's forward was not replaced. So the forward is replaced by itself, and compiled code sees a
        # change.
        self._forward: Callable[..., Any] | None = None
        if "forward" not in module.__dict__:
            self._forward = module.__dict__["forward"] = module.forward

    def remove(self) -> None:
        """Leave the module as it was found."""
        self._handle.remove()
        if self._forward is not None and self.module.__dict__.get("forward") is self._forward:
            del self.module.__dict__["forward"]


class SiteHooks:
    """The hooks of one attention layer, on the modules that it has at the moment.

    Attributes:
        site: The attention layer.
        k: The hook of `to_k`.
        v: The hook of `to_v`.
    """

    def __init__(self, site: AttentionSite) -> None:
        self.site = site
        self.k = SideHook("k")
        self.v = SideHook("v")
        self._hooks: dict[str, SideHook | FusedHook] = {
            "to_k": self.k,
            "to_v": self.v,
            "to_qkv": FusedHook(3, self.k, self.v),
            "to_kv": FusedHook(2, self.k, self.v),
        }
        self._hooked: dict[str, Hooked] = {}

    def sync(self) -> None:
        """Hook the modules that the layer has now: peft may have wrapped one, fusing added one."""
        modules = self.site.module._modules
        for slot in SLOTS:
            module, hooked = modules.get(slot), self._hooked.get(slot)
            if module is (hooked and hooked.module):
                continue
            if hooked is not None:
                self._hooked.pop(slot).remove()
            if module is not None:
                self._hooked[slot] = Hooked(module, self._hooks[slot])

    def remove(self) -> None:
        """Take all the hooks off."""
        for slot in list(self._hooked):
            self._hooked.pop(slot).remove()
