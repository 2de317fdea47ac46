"""Affine maps `x -> x M^T + b`, which is what a side without activation and norm amounts to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class AffineMap:
    """`x @ matrix.T + bias` for x of shape [..., inputs].

    Attributes:
        matrix: [outputs, inputs].
        bias: [outputs], of the dtype and on the device of `matrix`.
    """

    matrix: Tensor
    bias: Tensor

    @classmethod
    def identity(cls, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> AffineMap:
        """The map that changes nothing."""
        matrix = torch.eye(width, dtype=dtype, device=device)
        return cls(matrix, torch.zeros(width, dtype=dtype, device=device))

    @classmethod
    def zero(cls, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> AffineMap:
        """The map whose result is always zero."""
        zeros = torch.zeros(width, width, dtype=dtype, device=device)
        return cls(zeros, zeros[:, 0].clone())

    @classmethod
    def of_linear(cls, layer: nn.Linear, dtype: torch.dtype, device: torch.device | str = "cpu") -> AffineMap:
        """A Linear as a map, computing in `dtype` on `device`."""
        matrix = layer.weight.detach().to(device=device, dtype=dtype)
        bias = layer.bias.detach().to(matrix) if layer.bias is not None else matrix.new_zeros(matrix.shape[0])
        return cls(matrix, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """The map's value at `x` [..., inputs], of the map's dtype."""
        return functional.linear(x, self.matrix, self.bias)

    def then(self, after: AffineMap) -> AffineMap:
        """`after(self(x))` as one map."""
        return AffineMap(after.matrix @ self.matrix, after(self.bias))

    def __add__(self, other: AffineMap) -> AffineMap:
        return AffineMap(self.matrix + other.matrix, self.bias + other.bias)

    def __sub__(self, other: AffineMap) -> AffineMap:
        return AffineMap(self.matrix - other.matrix, self.bias - other.bias)

    def scaled(self, factor: float) -> AffineMap:
        """`factor * self(x)` as one map."""
        return AffineMap(self.matrix * factor, self.bias * factor)

    def rows(self, picked: Tensor) -> AffineMap:
        """The outputs of these indices, in this order (an output may be picked several times)."""
        return AffineMap(self.matrix[picked], self.bias[picked])
