"""Compute one side of a hypernetwork over rows of contexts, without gradients and in few calls.

`Program` runs a side in one dtype. `measure_rounding` decides whether half precision is accurate enough for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.activations import ACTIVATIONS, MIXING
from hnloader.network import SequentialSide, Side

# Contexts that the CPU computes at a time, so that hidden values stay in its cache: 1024 rows of 1280 values are 5 MB.
# Measured on SD 1's widths; 256 rows are slower by up to 5 %.
BLOCK_ROWS = 1024

HALF = (torch.float16, torch.bfloat16)
# Largest error of half precision relative to rounding the exact result; root mean squares. Files with norms reach two
# to three, and a UNet's result is then as close to float32 as with `exact`.
MOST_ERROR = 3


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the original programs, float32; float64 stays."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Layer:
    """A Linear and the modules after it; attributes are faster than lookups in a module."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.transposed, self.bias = linear.weight, linear.weight.t(), linear.bias
        self.after: list[Callable[[Tensor], Tensor]] = []

    def finish(self, x: Tensor) -> Tensor:
        for each in self.after:
            x = each(x)
        return x


# Modules that compute each value separately.
_ELEMENTWISE = frozenset(ACTIVATIONS.values()) - frozenset(MIXING)


def by_rows(side: Side) -> bool:
    """Return True if a side computes each context separately, with modules that a `Program` knows.

    Softmax and its variants choose a dimension from the shape of their input, and a PReLU with several slopes has one
    for each token. Such a side depends on the neighbors of a context.
    """
    if type(side) is not SequentialSide:  # a subclass may compute anything
        return False
    modules = list(side.linear)
    return bool(modules) and isinstance(modules[0], nn.Linear) and all(_by_rows(module) for module in modules)


def _by_rows(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, nn.Linear):
        return kind is nn.Linear and module.bias is not None
    if isinstance(module, nn.LayerNorm):
        return kind is nn.LayerNorm and len(module.normalized_shape) == 1
    if isinstance(module, nn.PReLU):
        return kind is nn.PReLU and module.weight.numel() == 1
    return kind is nn.Dropout or kind in _ELEMENTWISE


class Program:
    """`x + strength * residual(x)` of a sequential side, without gradients.

    Activations act in place if torch can. Strength, last bias and the sum are part of the last matrix product, which
    adds to its output. On the CPU, with more than one block of contexts, all blocks share the buffers of the layers.
    Otherwise it makes as few calls as possible, because a GPU often waits for them.

    Args:
        side: The side, with its parameters in `dtype` on the device of the contexts. They are not copied.
        dtype: Dtype of the computation.
    """

    def __init__(self, side: SequentialSide, dtype: torch.dtype) -> None:
        self.dtype = dtype
        with torch.no_grad():
            *self.layers, self.last = _layers(side.linear)

    def __call__(self, context: Tensor, strength: float) -> Tensor:
        """Return the changed `context` [..., width], in its dtype. Call it with gradients off."""
        rows = context.reshape(-1, context.shape[-1])
        if context.dtype != self.dtype:
            rows = rows.to(self.dtype)
        if rows.shape[0] > BLOCK_ROWS and rows.device.type == "cpu":
            result = self._by_blocks(rows, strength)
        else:
            hidden = rows
            for layer in self.layers:
                hidden = layer.finish(functional.linear(hidden, layer.weight, layer.bias))
            result = self._sum(rows, hidden, strength)
        result = result.view(context.shape)
        return result if context.dtype == self.dtype else result.to(context.dtype)

    def _by_blocks(self, rows: Tensor, strength: float) -> Tensor:
        result = torch.empty_like(rows, memory_format=torch.contiguous_format)
        buffers = [rows.new_empty(BLOCK_ROWS, len(layer.bias)) for layer in self.layers]
        for start in range(0, len(rows), BLOCK_ROWS):
            hidden = block = rows[start : start + BLOCK_ROWS]
            for layer, buffer in zip(self.layers, buffers, strict=True):
                out = buffer[: len(block)]
                torch.addmm(layer.bias, hidden, layer.transposed, out=out)
                hidden = layer.finish(out)
            self._sum(block, hidden, strength, result[start : start + BLOCK_ROWS])
        return result

    def _sum(self, rows: Tensor, hidden: Tensor, strength: float, out: Tensor | None = None) -> Tensor:
        """Add the last layer, times the strength, to the contexts."""
        last = self.last
        if last.after:
            residual = last.finish(functional.linear(hidden, last.weight, last.bias))
            return torch.add(rows, residual, alpha=strength, out=out)
        result = torch.add(rows, last.bias, alpha=strength, out=out)
        return result.addmm_(hidden, last.transposed, alpha=strength)


def _layers(modules: nn.Sequential) -> list[_Layer]:
    layers: list[_Layer] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            layers.append(_Layer(module))
        elif not isinstance(module, nn.Dropout):
            # `forward` skips the hooks, which these copies do not have.
            layers[-1].after.append(_in_place(module).forward)
    return layers


def _in_place(module: nn.Module) -> nn.Module:
    """Return a module that acts in place if it can, with the same parameters."""
    if not hasattr(module, "inplace"):
        return module
    twin = copy.copy(module)
    twin.__dict__["inplace"] = True
    return twin


@dataclass(frozen=True)
class Rounding:
    """The error of a side in half precision; means of squares over contexts of unit variance.

    Attributes:
        excess: Error of the residual at strength 1, beyond the error of rounding the result.
        relative: Error of rounding the result, relative to the square of the result.
        residual: Square of the residual.
        finite: True if contexts 16 times as large do not overflow.
    """

    excess: float
    relative: float
    residual: float
    finite: bool

    def allows(self, strength: float) -> bool:
        """Return True if the error is at most `MOST_ERROR` times the error of rounding the exact result."""
        rounding = self.relative * (1 + strength**2 * self.residual)
        return self.finite and strength**2 * self.excess <= (MOST_ERROR**2 - 1) * rounding


def measure_rounding(
    exact: SequentialSide, low: Program, width: int, device: torch.device, dtype: torch.dtype
) -> Rounding:
    """Compute 32 contexts in both ways: `exact` in float32 and `low` in `dtype`, both on `device`."""
    x = torch.randn(32, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    residual = exact.residual(x.float())
    result = x.float() + residual
    rounding = (result.to(dtype).float() - result).square().mean()
    error = (low(x, 1.0).float() - result).square().mean()
    finite = low(x * 16, 1.0).isfinite().all()
    return Rounding(
        excess=max(float(error - rounding), 0.0),
        relative=float(rounding / result.square().mean()),
        residual=float(residual.square().mean()),
        finite=bool(finite),
    )
