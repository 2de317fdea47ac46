"""Notice what changed since the last call of a model: its layers, their weights, and the hypernetworks.

This is the only place that looks. It compares identities, versions and addresses, and a few values of each tensor, for
changes that torch does not count: `weight.data += x`. A step leaves most of this memory cold, so each thing that is
looked at takes a fraction of a microsecond.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hnloader.attention.decoders import is_falcon_linear, is_transposed
from hnloader.attention.layout import AttentionSite
from hnloader.network import Hypernetwork

# Values of a large tensor that are compared, and the bytes that make it large: such models take much longer.
PLACES = 256
LARGE = 1 << 18
# On the CPU, smaller tensors are compared in this many lines of the processor's cache, and the smallest as a whole.
LINES = 2
LINE = 64
SMALL = 2048

_VERSION = operator.attrgetter("_version")
_REQUIRES_GRAD = operator.attrgetter("requires_grad")

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
    return lambda module: (own and type(module) is nn.Linear) or is_transposed(module) or is_falcon_linear(module)


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
        children = [site.module._modules for site in sites]
        layers = [
            (modules, slot)
            for modules, site in zip(children, sites, strict=True)
            for slot in site.slots
            if slot in modules
        ]
        found = [modules[slot] for modules, slot in layers]
        modules = [module for module in found if module is not None]
        fused = [site.module.__dict__ for site in sites if any(slot in site.module._modules for slot in _FUSED)]
        layers += [(layer, "fused_projections") for layer in fused]
        own = [module for hypernetwork in hypernetworks for module in hypernetwork.modules()]
        own_entries: list[tuple[dict[str, Any], str]] = [
            (module._modules, name) for module in own for name in module._modules
        ]
        own_entries += [(module._parameters, name) for module in own for name in module._parameters]
        weight_entries = [(module._parameters, name) for module in weights for name in module._parameters]
        self._all = _Entries([*layers, *weight_entries], own_entries)
        self._own = _Entries([], own_entries)
        # Whatever a program adds (a hook, a forward, an offloading hook, a module) makes one of these longer. If it
        # offloads a block alone, that shows when it moves the weights.
        hooks = [module.__dict__[name] for module in modules for name in _HOOKS]
        attributes = [module.__dict__ for module in modules]
        self._dicts = [*children, *surroundings[:1], *attributes, *hooks]
        self._lengths = self._present_lengths(busy)
        self._forward = nn.Linear.forward
        # Asking torch's own Linear would mean to look at each module again.
        self._linears, self._asked = linears, [] if linears is torch_linears else modules
        self._plain = self._present_plain()

    def found(self, *, busy: bool) -> bool:
        """Return True if something changed since this object was made; see above for `busy`."""
        return (
            nn.Linear.forward is not self._forward
            or self._present_lengths(busy) != self._lengths
            or self._all.changed()
            or (bool(self._asked) and self._present_plain() != self._plain)
        )

    def of_hypernetworks(self) -> bool:
        """Return True if the hypernetworks changed."""
        return self._own.changed()

    def _present_lengths(self, busy: bool) -> list[int]:
        """Return the numbers of entries, without those that hnloader sets for the time of a call."""
        if busy:
            return [sum(not is_ours(value) for value in own.values()) for own in self._dicts]
        return list(map(len, self._dicts))

    def _present_plain(self) -> list[bool]:
        is_plain = self._linears()
        return [is_plain(module) for module in self._asked]


class _Entries:
    """Entries of the dictionaries of modules, and the tensors among them. It looks without Python's loops.

    Args:
        model: Dictionaries and names in the model.
        own: The same in the hypernetworks, whose need for gradients and further modules count too.
    """

    def __init__(self, model: Sequence[tuple[dict[str, Any], str]], own: Sequence[tuple[dict[str, Any], str]]) -> None:
        entries = [*model, *own]
        self._dicts, self._names = [entry[0] for entry in entries], [entry[1] for entry in entries]
        self._values = [entries.get(name) for entries, name in entries]
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]  # the others have no version
        self._lengthened = list({id(names): names for names, _ in own}.values())
        self._lengths = list(map(len, self._lengthened))
        self._trained = [value for value in self._values[len(model) :] if isinstance(value, Tensor)]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._versions = list(map(_VERSION, self._counted))
        self._gradients = list(map(_REQUIRES_GRAD, self._trained))
        # Parameters in training are never kept; comparing values on another device waits for it.
        left_out = {id(t) for t in self._trained if t.requires_grad or t.device.type != "cpu"}
        self._watch = Watch(t for t in self._tensors if id(t) not in left_out and t.is_contiguous())

    def changed(self) -> bool:
        """Return True if an entry or a tensor changed."""
        # The entries come first: if they are the same, so are the tensors.
        return (
            any(map(operator.is_not, map(dict.get, self._dicts, self._names), self._values))
            or list(map(Tensor.data_ptr, self._tensors)) != self._addresses
            or list(map(_VERSION, self._counted)) != self._versions
            or list(map(_REQUIRES_GRAD, self._trained)) != self._gradients
            or list(map(len, self._lengthened)) != self._lengths
            or self._watch.changed()
        )


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
                self._lines += _lines_of(flat)
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
        return any(
            not torch.equal(torch.cat(views), values) for views, values in self._groups if not _is_captured(values)
        )


def _is_captured(values: Tensor) -> bool:
    """Return True while a CUDA graph records the operations on a tensor, so that its values cannot be read."""
    return values.is_cuda and torch.cuda.is_current_stream_capturing()


def _lines_of(flat: Tensor) -> list[Tensor]:
    """Return all of a small tensor, otherwise evenly spaced lines of the processor's cache."""
    if len(flat) * flat.element_size() <= SMALL:
        return [flat]
    size = LINE // flat.element_size()
    starts = [index * len(flat) // LINES // size * size for index in range(LINES)]
    return [flat[start : start + size] for start in starts]


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
