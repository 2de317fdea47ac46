"""Less memory for the gradients of a frozen UNet, at the cost of a few cheap passes in the backward.

Gradients go through the UNet, but none of its own weights gets one. So much of what autograd keeps by itself is kept
for nothing: a convolution keeps its input, which only the gradient of its weight needs; and what a norm or a gelu
gives is kept although it follows from the norm's or the gelu's input, which is kept as well. Here the former is
kept as a shape, the latter computed again. The gradients are those of the plain graph, bit for bit where torch
computes an operation the same way twice.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hnloader.attention.stages import autocast_dtype

Remake = Callable[[], Tensor]


@contextlib.contextmanager
def lean_graph(unet: nn.Module) -> Iterator[None]:
    """While this holds, calls of the UNet keep less for the gradients.

    It does nothing where no gradients are recorded and under autocast, and modules whose weights are trained are
    left alone. Gradient checkpointing decides for itself within its blocks.

    Args:
        unet: any module; what it holds of `nn.Conv2d`, `nn.GroupNorm`, `nn.LayerNorm` and diffusers' `GEGLU` counts.
    """
    device = next(unet.parameters()).device
    if not torch.is_grad_enabled() or autocast_dtype(device.type) is not None:
        yield
        return
    known = _Known()
    with contextlib.ExitStack() as stack:
        for module in unet.modules():
            _watch(module, known, stack)
        with torch.autograd.graph.saved_tensors_hooks(known.pack, _unpack):
            yield


def _watch(module: nn.Module, known: _Known, stack: contextlib.ExitStack) -> None:
    """Have `known` learn what a module's results follow from."""
    # The very classes: what derives from them, or was wrapped by others, may compute something else.
    kind = type(module)
    if kind not in (nn.Conv2d, nn.GroupNorm, nn.LayerNorm) and kind.__name__ != "GEGLU":
        return
    if any(parameter is not None and parameter.requires_grad for parameter in module._parameters.values()):
        return
    if kind is nn.Conv2d and module.padding_mode == "zeros":
        stack.callback(module.register_forward_pre_hook(known.needs_shape_of).remove)
        stack.callback(module.register_forward_hook(known.needs_it_no_more).remove)
    elif kind in (nn.GroupNorm, nn.LayerNorm):
        stack.callback(module.register_forward_hook(known.made_by_norm).remove)
    elif kind.__name__ == "GEGLU" and "gelu" not in module.__dict__ and hasattr(module, "gelu"):
        plain: Any = module.gelu
        module.__dict__["gelu"] = known.told(plain)
        stack.callback(module.__dict__.pop, "gelu")


class _Known:
    """Tensors that are there now, and how each can be made again; hooks for the modules that make them.

    A tensor is known by where its values lie. It is forgotten when it is freed, so that none that comes to lie at the
    same place is taken for it.
    """

    def __init__(self) -> None:
        self._remakes: dict[tuple[object, ...], tuple[weakref.ref[Tensor], Remake]] = {}

    def pack(self, tensor: Tensor) -> Tensor | Remake:
        """What autograd keeps in place of a tensor."""
        found = self._remakes.get(_place(tensor))
        return tensor if found is None else found[1]

    def learn(self, tensor: Tensor, remake: Remake) -> None:
        """From now on this tensor need not be kept."""
        place = _place(tensor)
        self._remakes[place] = weakref.ref(tensor, lambda ref: self._forget(place, ref)), remake

    def _forget(self, place: tuple[object, ...], ref: weakref.ref[Tensor]) -> None:
        found = self._remakes.get(place)
        if found is not None and found[0] is ref:
            del self._remakes[place]

    # -- hooks

    def needs_shape_of(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        """A frozen convolution needs no value of its input for the gradient of its input."""
        (tensor,) = given
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            shape, dtype, device = tensor.shape, tensor.dtype, tensor.device
            self._remakes.pop(_place(tensor), None)
            self.learn(tensor, lambda: torch.zeros((), dtype=dtype, device=device).expand(shape))

    def needs_it_no_more(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        """Others may need the values."""
        if isinstance(given[0], Tensor):
            self._remakes.pop(_place(given[0]), None)

    def made_by_norm(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        """A norm keeps its input anyway."""
        if len(given) == 1 and isinstance(given[0], Tensor) and output.requires_grad:
            self.learn(output, _remaking(module.forward, given[0]))

    def told(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The function, with what it returns known to follow from its argument, which it keeps anyway."""

        def run(tensor: Tensor) -> Tensor:
            result = function(tensor)
            if result.requires_grad:
                self.learn(result, _remaking(function, tensor))
            return result

        return run


def _remaking(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Remake:
    kept = tensor.detach()
    version = tensor._version

    def remake() -> Tensor:
        if kept._version != version:
            raise RuntimeError("a tensor that is needed for the gradients was changed in place")
        with torch.no_grad():
            return function(kept)

    return remake


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


def _unpack(kept: Tensor | Remake) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()
