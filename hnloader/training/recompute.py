"""Save less for the backward pass of a frozen UNet, at the cost of a few operations in it.

Gradients pass through the UNet, but its weights get none. Autograd saves some tensors in vain. A convolution saves
its input, which only the gradient of its weight needs; this module saves its shape. The outputs of norms follow from
the inputs, which are saved as well, and are recomputed. The inside of a feed-forward layer is eight times as wide as
its input, and is recomputed from it: that costs a projection. The gradients are equal bit for bit if torch computes
an operation the same way twice.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hnloader.attention.stages import autocast_dtype

Recompute = Callable[[], Tensor]


@contextlib.contextmanager
def recompute_activations(unet: nn.Module) -> Iterator[None]:
    """Have calls of a UNet save less for the backward pass while this is active.

    It does nothing without gradients and under autocast, and skips convolutions and norms with trained weights.
    Gradient checkpointing handles its own blocks.

    Args:
        unet: Any module; its `nn.Conv2d`, `nn.GroupNorm`, `nn.LayerNorm` and diffusers' `GEGLU` matter.
    """
    device = next(unet.parameters()).device
    if not torch.is_grad_enabled() or autocast_dtype(device.type) is not None:
        yield
        return
    known = _Recomputable()
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in unet.modules())
    with contextlib.ExitStack() as stack:
        for module in unet.modules():
            if type(module).__name__ == "GEGLU" and not checkpointed:
                _checkpoint(module, stack)
            else:
                _watch(module, known, stack)
        with torch.autograd.graph.saved_tensors_hooks(known.pack, _unpack):
            yield


def _watch(module: nn.Module, known: _Recomputable, stack: contextlib.ExitStack) -> None:
    """Add the hooks of a convolution or a norm."""
    # Exact classes: subclasses and wrappers may compute something else.
    kind = type(module)
    if kind not in (nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
        return
    if any(parameter is not None and parameter.requires_grad for parameter in module._parameters.values()):
        return
    if kind is nn.Conv2d and module.padding_mode == "zeros":
        stack.callback(module.register_forward_pre_hook(known.before_convolution).remove)
        stack.callback(module.register_forward_hook(known.after_convolution).remove)
    elif kind in (nn.GroupNorm, nn.LayerNorm):
        stack.callback(module.register_forward_hook(known.after_norm).remove)


def _checkpoint(module: nn.Module, stack: contextlib.ExitStack) -> None:
    """Save the input of a module alone."""
    if "forward" in module.__dict__:
        return
    # A trained projection may have dropout. Saving the state of a GPU's generator would wait for the GPU.
    trained = any(parameter.requires_grad for parameter in module.parameters())
    module.__dict__["forward"] = functools.partial(
        checkpoint, module.forward, use_reentrant=False, preserve_rng_state=trained
    )
    stack.callback(module.__dict__.pop, "forward")


class _Recomputable:
    """Living tensors that can be recomputed, and the hooks of the modules that make them.

    Memory address and layout identify a tensor. It is removed when it is freed, so that a later tensor at the same
    address is not mistaken for it.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[object, ...], tuple[weakref.ref[Tensor], Recompute]] = {}

    def pack(self, tensor: Tensor) -> Tensor | Recompute:
        """Return what autograd saves for a tensor."""
        found = self._tensors.get(_identity(tensor))
        return tensor if found is None else found[1]

    def add(self, tensor: Tensor, recompute: Recompute) -> None:
        """Save `recompute` instead of this tensor from now on."""
        key = _identity(tensor)
        self._tensors[key] = weakref.ref(tensor, lambda ref: self._remove(key, ref)), recompute

    def _remove(self, key: tuple[object, ...], ref: weakref.ref[Tensor]) -> None:
        found = self._tensors.get(key)
        if found is not None and found[0] is ref:
            del self._tensors[key]

    def before_convolution(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        """Return the gradient for the input of a frozen convolution, which needs only the shape of the input."""
        (tensor,) = given
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            shape, dtype, device = tensor.shape, tensor.dtype, tensor.device
            self._tensors.pop(_identity(tensor), None)
            self.add(tensor, lambda: torch.zeros((), dtype=dtype, device=device).expand(shape))

    def after_convolution(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        """Other operations may need the values of the input."""
        if isinstance(given[0], Tensor):
            self._tensors.pop(_identity(given[0]), None)

    def after_norm(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        """Return the gradient for the input of a norm, which is saved in any case."""
        if len(given) == 1 and isinstance(given[0], Tensor) and output.requires_grad:
            self.add(output, _recomputing(module.forward, given[0]))


def _recomputing(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Recompute:
    saved, version = tensor.detach(), tensor._version

    def recompute() -> Tensor:
        if saved._version != version:
            raise RuntimeError("A tensor that the backward pass needs was changed in place.")
        with torch.no_grad():
            return function(saved)

    return recompute


def _identity(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


def _unpack(saved: Tensor | Recompute) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved()
