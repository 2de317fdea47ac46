"""Affine maps `x -> x M^T + b`, to which sides without activation and norm reduce."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AffineMap"]


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map `x @ matrix.T + bias` for x of shape [..., inputs].

    Attributes:
        matrix: Matrix. [outputs, inputs].
        bias: Bias. [outputs], the dtype and device of `matrix`.
    """

    matrix: Tensor
    bias: Tensor

    @classmethod
    def identity(cls, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> AffineMap:
        """Return the identity."""
        matrix = torch.eye(width, dtype=dtype, device=device)
        return cls(matrix, torch.zeros(width, dtype=dtype, device=device))

    @classmethod
    def zero(cls, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> AffineMap:
        """Return the zero map."""
        zeros = torch.zeros(width, width, dtype=dtype, device=device)
        return cls(zeros, zeros[:, 0].clone())

    @classmethod
    def of_linear(cls, layer: nn.Linear, dtype: torch.dtype, device: torch.device | str = "cpu") -> AffineMap:
        """Return the map of a Linear in `dtype` on `device`."""
        matrix = layer.weight.detach().to(device=device, dtype=dtype)
        bias = layer.bias.detach().to(matrix) if layer.bias is not None else matrix.new_zeros(matrix.shape[0])
        return cls(matrix, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the map's value at `x` [..., inputs], in the map's dtype."""
        return functional.linear(x, self.matrix, self.bias)

    def then(self, after: AffineMap) -> AffineMap:
        """Return `after(self(x))` as one map."""
        return AffineMap(after.matrix @ self.matrix, after(self.bias))

    def __add__(self, other: AffineMap) -> AffineMap:
        return AffineMap(self.matrix + other.matrix, self.bias + other.bias)

    def __sub__(self, other: AffineMap) -> AffineMap:
        return AffineMap(self.matrix - other.matrix, self.bias - other.bias)

    def scaled(self, factor: float) -> AffineMap:
        """Return `factor * self(x)` as one map."""
        return AffineMap(self.matrix * factor, self.bias * factor)

    def rows(self, picked: Tensor) -> AffineMap:
        """Return the map to the outputs of these indices, in this order and with repetitions."""
        return AffineMap(self.matrix[picked], self.bias[picked])
