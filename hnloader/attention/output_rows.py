"""The rows of a projection's output by their use: queries, keys and values in one matrix, in any order.

The rows of a matrix are groups of equal size, and each group has the same parts in the same order. Most fused
projections are one group of queries, keys and values; others have a group for each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hnloader.network import SideName

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """The parts of a projection's output.

    Attributes:
        sides: The side of each part, None for queries.
        sizes: Rows of each part in a group. Empty for parts of equal size. Default: empty.
        groups: Number of groups. Default: 1.
    """

    sides: tuple[SideName | None, ...]
    sizes: tuple[int, ...] = ()
    groups: int = 1

    def split(self, tensor: Tensor, dim: int) -> list[Tensor]:
        """Return the parts of a tensor whose dimension `dim` is the rows; views if there is one group."""
        if self.groups == 1:
            return list(tensor.split(self.sizes, dim) if self.sizes else tensor.chunk(len(self.sides), dim))
        grouped = tensor.unflatten(dim, (self.groups, -1))
        along = dim + 1 if dim >= 0 else dim
        parts = grouped.split(self.sizes, along) if self.sizes else grouped.chunk(len(self.sides), along)
        return [part.flatten(along - 1, along) for part in parts]

    def join(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        """Return the tensor of these parts; the inverse of `split`."""
        if self.groups == 1:
            return torch.cat(list(parts), dim)
        along = dim + 1 if dim >= 0 else dim
        grouped = [part.unflatten(dim, (self.groups, -1)) for part in parts]
        return torch.cat(grouped, along).flatten(along - 1, along)
