"""Notice what changed since the last call of a model: its layers, their weights, and the hypernetworks.

This is the only place that looks. The check takes some 100 microseconds for the UNet of SD 1. It compares identities,
versions and addresses, and a few values of each tensor, for changes that torch does not count: `weight.data += x`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hnloader.attention.layout import SLOTS, AttentionSite
from hnloader.network import Hypernetwork

# Values of a large tensor that are compared, and the bytes that make it large: such models take much longer.
PLACES = 256
LARGE = 1 << 18
# On the CPU, smaller tensors are compared in one line of the processor's cache, and the smallest as a whole.
LINE = 64
SMALL = 2048

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class Ours:
    """Base of what hnloader sets on modules."""


def is_ours(function: object) -> bool:
    """Return True for a function that hnloader sets on modules."""
    return isinstance(getattr(function, "__self__", function), Ours)


_FUSED = ("to_qkv", "to_kv")


# Called before each call of a model. Returns a test of its projections, which is True if the module's forward is only
# `linear(x, module.weight, module.bias)` in that call. The program that gives it changes no text during a call.
PlainLinears: TypeAlias = "Callable[[], Callable[[nn.Module], bool]]"


def torch_linears() -> Callable[[nn.Module], bool]:
    """Return a test for torch's own Linear; see `PlainLinears`.

    AUTOMATIC1111's webui puts its LoRA into `nn.Linear.forward` for all modules; then none is plain.
    """
    own = nn.Linear.forward.__module__ == "torch.nn.modules.linear"
    return lambda module: own and type(module) is nn.Linear


class Changes:
    """The state of everything that a model with hypernetworks depends on.

    Args:
        sites: The attention layers that have hypernetworks.
        surroundings: Attributes of the modules around them, the model's first; see `modules_around`.
        hypernetworks: The hypernetworks that act.
        weights: The projections that are computed from their weights, not by their forward.
        linears: Finds the plain projections.
        busy: The modules have something that hnloader sets for the time of a call.
    """

    def __init__(
        self,
        sites: Sequence[AttentionSite],
        surroundings: Sequence[dict[str, Any]],
        hypernetworks: Sequence[Hypernetwork],
        weights: Sequence[nn.Module],
        linears: PlainLinears,
        *,
        busy: bool,
    ) -> None:
        self._layers = _Layers(sites, surroundings, linears, busy=busy)
        self._weights = _Tensors(weights)
        self._own = _Tensors((m for hypernetwork in hypernetworks for m in hypernetwork.modules()), own=True)

    def found(self, *, busy: bool) -> bool:
        """Return True if something changed since this object was made; see above for `busy`."""
        return self._layers.changed(busy) or self._weights.changed() or self._own.changed()

    def of_hypernetworks(self) -> bool:
        """Return True if the hypernetworks changed."""
        return self._own.changed()


class _Layers:
    """The modules of the layers, and what other programs added to them."""

    def __init__(
        self,
        sites: Sequence[AttentionSite],
        surroundings: Sequence[dict[str, Any]],
        linears: PlainLinears,
        *,
        busy: bool,
    ) -> None:
        children = [site.module._modules for site in sites]
        self._slots = [(modules, slot) for modules in children for slot in SLOTS if slot in modules]
        modules = [module for module in self._projections() if module is not None]
        own = [module.__dict__ for module in modules]
        hooks = [attributes[name] for attributes in own for name in _HOOKS]
        # Whatever a program adds (a hook, a forward, an offloading hook, a module) makes one of these longer. If it
        # offloads a block alone, that shows when it moves the weights.
        self._dicts: list[Mapping[str, object]] = [*children, *surroundings[:1], *own, *hooks]
        self._fused = [site.module.__dict__ for site in sites if any(slot in site.module._modules for slot in _FUSED)]
        # Asking torch's own Linear would mean to look at each module again.
        self._linears, self._asked = linears, [] if linears is torch_linears else modules
        self._state = self._now(busy)

    def changed(self, busy: bool) -> bool:
        return self._now(busy) != self._state

    def _projections(self) -> list[nn.Module | None]:
        return [modules.get(slot) for modules, slot in self._slots]

    def _now(self, busy: bool) -> list[object]:
        is_plain = self._linears()
        return [
            nn.Linear.forward,
            self._sizes(busy),
            list(map(id, self._projections())),
            [layer.get("fused_projections") for layer in self._fused],
            [is_plain(module) for module in self._asked],
        ]

    def _sizes(self, busy: bool) -> list[int]:
        """Return the numbers of entries, without those that hnloader sets for the time of a call."""
        if busy:
            return [sum(not is_ours(value) for value in own.values()) for own in self._dicts]
        return list(map(len, self._dicts))


class _Tensors:
    """The parameters of modules, and with `own` their submodules and the need for gradients too."""

    def __init__(self, modules: Iterable[nn.Module], *, own: bool = False) -> None:
        modules = list(modules)
        self._parameters = [module._parameters for module in modules if module._parameters]
        self._children = [module._modules for module in modules if module._modules] if own else []
        self._own = own
        self._tensors = [p for parameters in self._parameters for p in parameters.values() if p is not None]
        self._counted = [t for t in self._tensors if not t.is_inference()]  # the others have no version
        self._ids, self._state = self._identities(), self._values()
        # Parameters in training are never kept; comparing values on another device waits for it.
        watched = [t for t in self._tensors if not own or (t.device.type == "cpu" and not t.requires_grad)]
        self._watch = Watch(tensor for tensor in watched if tensor.is_contiguous())

    def changed(self) -> bool:
        # The identities come first: if they are the same, the tensors of the first look are still the present ones.
        if self._identities() != self._ids or self._values() != self._state:
            return True
        return self._watch.changed()

    def _identities(self) -> list[int]:
        children = [id(child) for children in self._children for child in children.values()]
        return children + [id(p) for parameters in self._parameters for p in parameters.values()]

    def _values(self) -> list[object]:
        state: list[object] = [[t.data_ptr() for t in self._tensors], [t._version for t in self._counted]]
        if self._own:
            state.append([t.requires_grad for t in self._tensors])
        return state


def versions(module: nn.Module) -> list[object]:
    """Return values that differ after a parameter is replaced, moved or converted, or changes as torch counts it."""
    state: list[object] = []
    for parameter in module._parameters.values():
        if parameter is not None:
            state += (id(parameter), parameter.data_ptr(), -1 if parameter.is_inference() else parameter._version)
    return state


class Watch:
    """Some values of many tensors, to notice changes that torch does not count.

    peft merges a LoRA in this way. That changes nearly all values of a weight, so some are enough. They are compared at
    once.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._lines: list[Tensor] = []  # they keep the memory alive
        groups: dict[tuple[object, ...], list[Tensor]] = {}
        for tensor in tensors:
            flat = tensor.detach().view(-1)
            if flat.device.type == "cpu" and flat.numel() * flat.element_size() < LARGE:
                self._lines.append(_line_of(flat))
                continue
            view = flat[:: len(flat) // PLACES | 1]  # an odd step passes through all columns
            # On the CPU, torch joins views of the same layout faster.
            layout = (view.shape, view.stride()) if flat.device.type == "cpu" else ()
            groups.setdefault((view.device, view.dtype, layout), []).append(view)
        # An operation of torch on each line would take longer than the comparison.
        self._memory = [_bytes_of(line) for line in self._lines]
        self._bytes = b"".join(self._memory)
        self._groups = [(views, torch.cat(views)) for views in groups.values()]

    def changed(self) -> bool:
        """Return True if a tensor has other values now; its address must be the same."""
        if b"".join(self._memory) != self._bytes:
            return True
        return any(not torch.equal(torch.cat(views), values) for views, values in self._groups)


def _line_of(flat: Tensor) -> Tensor:
    """Return all of a small tensor, otherwise what fills a line of the processor's cache in its middle."""
    size = LINE // flat.element_size()
    middle = len(flat) // 2 // size * size
    return flat if len(flat) * flat.element_size() <= SMALL else flat[middle : middle + size]


def _bytes_of(tensor: Tensor) -> ctypes.Array[ctypes.c_char]:
    """Return the memory of a contiguous tensor on the CPU."""
    return (ctypes.c_char * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())


def modules_around(model: nn.Module, sites: Sequence[AttentionSite]) -> list[dict[str, Any]]:
    """Return the attributes of the model, of its attention layers and of all modules around them."""
    names = {site.name[:end] for site in sites for end in _ends(site.name)}
    return [module.__dict__ for name, module in model.named_modules() if name in names or not name]


def _ends(name: str) -> list[int]:
    return [index for index, letter in enumerate(name + ".") if letter == "."]


def moves_weights(modules: Iterable[dict[str, Any]]) -> str:
    """Return a reason if accelerate or diffusers left an offloading hook among these attributes, else an empty text."""
    for attributes in modules:
        if "_hf_hook" in attributes or "_diffusers_hook" in attributes:
            return "the model is offloaded"
    return ""


def own_forward(attributes: dict[str, Any]) -> int:
    """Return the identity of a forward that another program set on a module, 0 if there is none."""
    forward = attributes.get("forward")
    return 0 if forward is None or is_ours(forward) else id(forward)


def has_hooks(module: nn.Module) -> bool:
    """Return True if another program has hooks on a module, which may read or change its input and output."""
    return any(_count(getattr(module, name)) for name in _HOOKS)


def _count(hooks: Mapping[int, object]) -> int:
    return sum(not is_ours(hook) for hook in hooks.values())
