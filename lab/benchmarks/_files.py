"""Make the hypernetworks that the benchmarks attach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hnloader.network import Architecture, Hypernetwork
from lab.benchmarks._models import Subject


@dataclass(frozen=True)
class Case:
    """A kind of file.

    Attributes:
        title: Name in tables.
        architecture: Architecture of its sides.
        cross_only: True if it has only the width of the text.
        count: Number of different files in the chain.
    """

    title: str
    architecture: Architecture
    cross_only: bool = False
    count: int = 1

    def make(self, subject: Subject, count: int | None = None) -> list[Hypernetwork]:
        """Return new hypernetworks for a subject; `count` overrides the number of the case."""
        widths = subject.cross_widths if self.cross_only else subject.widths
        return hypernetworks(self.architecture, widths, self.count if count is None else count)


LINEAR = Case("[1, 2, 1] linear", Architecture((1, 2, 1)))
RELU = Case("[1, 2, 1] relu", Architecture((1, 2, 1), "relu"))
NORM = Case("[1, 2, 2, 1] relu, norm, dropout", Architecture((1, 2, 2, 1), "relu", norm=True, dropout=(0, 0.3, 0.3, 0)))
CROSS = Case("[1, 2, 1] relu, cross-attention only", RELU.architecture, cross_only=True)
CROSS_LINEAR = Case("[1, 2, 1] linear, cross-attention only", LINEAR.architecture, cross_only=True)
FIVE_RELU = Case("five chained, [1, 2, 1] relu", RELU.architecture, count=5)
FIVE_LINEAR = Case("five chained, [1, 2, 1] linear", LINEAR.architecture, count=5)


def hypernetworks(architecture: Architecture, widths: Sequence[int], count: int = 1) -> list[Hypernetwork]:
    """Return `count` different hypernetworks with torch's default initialization and without gradients."""
    torch.manual_seed(0)
    made = [Hypernetwork.new(tuple(widths), architecture, name=f"style{number}") for number in range(count)]
    return [each.requires_grad_(False) for each in made]
