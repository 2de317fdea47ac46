"""A context that a hypernetwork without activation changes, as a tensor that computes its change when it is used."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.affine import AffineMap

# An affine map and the strength of its change: c + strength * map(c).
Change = tuple[AffineMap, float]

_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class KeptFolds:
    """The folded weights of one sampling run. The run owns this object, so its end frees the memory.

    Args:
        has_room: Returns False if a weight of this size in bytes must not be kept on its device.
    """

    def __init__(self, has_room: Callable[[int, torch.device], bool]) -> None:
        self._has_room = has_room
        self._folds: dict[tuple[object, tuple[Change, ...]], tuple[weakref.ref[Tensor], Tensor, Tensor]] = {}

    def folded(self, key: object, weight: Tensor, changes: tuple[Change, ...]) -> tuple[Tensor, Tensor] | None:
        """Return the folded weight and its bias, or None if they are not kept.

        Args:
            key: Attention layer and side.
            weight: Weight of the projection, the same object in every step.
            changes: Changes of the context, the same objects in every step.
        """
        kept = self._folds.get((key, changes))
        if kept is not None and kept[0]() is weight:
            return kept[1:]
        # ComfyUI casts some weights in each call. Their folds could be used only once.
        if not isinstance(weight, nn.Parameter):
            return None
        if kept is None and not self._has_room(weight.numel() * weight.element_size(), weight.device):
            return None
        made = fold(weight, changes)
        self._folds[key, changes] = (weakref.ref(weight), *made)
        return made


class FoldedContext(Tensor):
    """A context `c` after `c + strength * map(c)` for each change.

    A Linear layer folds the changes into its weight instead of changing each token. Any other operation sees the
    changed context.

    Args:
        base: Context before the changes. [..., width].
        changes: The changes, in order.
        key: Attention layer and side.
        kept: Folded weights of the run; None to keep none.
    """

    base: Tensor
    changes: tuple[Change, ...]
    key: object
    kept: KeptFolds | None
    _changed: Tensor | None

    @staticmethod
    def __new__(cls, base: Tensor, changes: tuple[Change, ...], key: object, kept: KeptFolds | None) -> FoldedContext:
        """Make a tensor without data, which no kernel can read by mistake."""
        made: FoldedContext = Tensor._make_wrapper_subclass(
            cls, base.shape, dtype=base.dtype, device=base.device, strides=base.stride()
        )
        made.base, made.changes, made.key, made.kept, made._changed = base, changes, key, kept, None
        return made

    def changed(self) -> Tensor:
        """Return the changed context as a plain tensor."""
        if self._changed is None:
            self._changed = change(self.base, self.changes)
        return self._changed

    def projected(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the output of a Linear layer for the changed context."""
        tokens, width = self.base.numel() // self.base.shape[-1], self.base.shape[-1]
        if type(weight) in (Tensor, nn.Parameter) and weight.dtype == self.base.dtype in _COMPUTED:
            made = self.kept.folded(self.key, weight, self.changes) if self.kept is not None else None
            if made is None and tokens > width:  # folding takes less work than changing all tokens
                made = fold(weight, self.changes)
            if made is not None:
                return functional.linear(self.base, made[0], made[1] if bias is None else made[1] + bias)
        return functional.linear(self.changed(), weight, bias)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Fold in a Linear layer, answer questions about shape and dtype, and compute the context for the rest."""
        kwargs = kwargs or {}
        if func is functional.linear and args and type(args[0]) is cls:
            return args[0].projected(*map(plain, args[1:]), **{name: plain(value) for name, value in kwargs.items()})
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return func(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Compute the context for operations that bypass `__torch_function__`."""
        return func(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})


# Properties that a changed context shares with its base.
_ABOUT = {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad")
} | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}


def plain(value: Any) -> Any:
    """Return a value with each `FoldedContext` in it, or in a list or tuple, as a plain tensor."""
    if type(value) is FoldedContext:
        return value.changed()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def change(context: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return a context after the changes, computed in float32 or float64 and returned in its dtype."""
    dtype = torch.float64 if context.dtype == torch.float64 else torch.float32
    result = context.to(dtype)
    for affine, strength in changes:
        result = result + affine(result) * strength
    return result.to(context.dtype)


def fold(weight: Tensor, changes: Sequence[Change]) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a Linear layer that includes the changes, in the dtype of `weight`."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    folded = weight.detach().to(dtype)
    bias = folded.new_zeros(folded.shape[0])
    for affine, strength in reversed(changes):
        bias = bias + (folded @ affine.bias) * strength
        folded = folded + (folded @ affine.matrix) * strength
    return folded.to(weight.dtype), bias.to(weight.dtype)
