"""The batches of each step.

Everything random is a function of the seed and the step, so that a resumed training run sees the same data and no
random state is saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator

T = TypeVar("T")


@dataclass(frozen=True)
class Draw:
    """One image in one step.

    Attributes:
        image: Its index.
        number: Counts the draws of the training; it determines everything random about this draw.
    """

    image: int
    number: int


class BatchSampler(Sequence[tuple[Draw, ...]]):
    """The endless sequence of batches of a training run.

    An epoch shows each image `repeats` times in a new order. All images of a batch have one size.

    Args:
        sizes: The training size of each image.
        batch_size: Images per batch. The last batch of a size is filled with random images of this size.
        repeats: Repeats of each image per epoch.
        seed: Seed of the order.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int, repeats: int, seed: int) -> None:
        groups: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            groups.setdefault(size, []).append(index)
        self._groups = [group for _, group in sorted(groups.items())]
        self._batch_size, self._repeats, self._seed = batch_size, repeats, seed
        self._epoch, self._batches = -1, list[tuple[int, ...]]()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return sum(-(-len(group) * self._repeats // self._batch_size) for group in self._groups)

    def __getitem__(self, index: int) -> tuple[Draw, ...]:  # type: ignore[override]
        """Return a batch of any epoch; `index` counts from 0."""
        epoch, place = divmod(index, len(self))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        first = index * self._batch_size
        return tuple(Draw(image, first + slot) for slot, image in enumerate(self._batches[place]))

    def _shuffled(self, epoch: int) -> list[tuple[int, ...]]:
        generator = generator_for(self._seed, "order", epoch)
        batches: list[tuple[int, ...]] = []
        for group in self._groups:
            shown = [image for _ in range(self._repeats) for image in permuted(group, generator)]
            missing = -len(shown) % self._batch_size
            shown += [group[random_below(generator, len(group))] for _ in range(missing)]
            batches += [
                tuple(shown[start : start + self._batch_size]) for start in range(0, len(shown), self._batch_size)
            ]
        return permuted(batches, generator)


def generator_for(seed: int, purpose: str, number: int) -> Generator:
    """Return a generator for a seed, a purpose and a number; on the CPU, so that it is the same for every device."""
    digest = hashlib.sha256(f"{seed} {purpose} {number}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def random_float(generator: Generator) -> float:
    """Return a random number from 0 to 1."""
    return float(torch.rand((), generator=generator))


def random_below(generator: Generator, limit: int) -> int:
    """Return a random whole number from 0 to `limit` - 1."""
    return int(torch.randint(limit, (), generator=generator))


def split(count: int, validation_split: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of the data to train on and of those for validation (none of fewer than five)."""
    size = max(round(count * validation_split), 1) if validation_split > 0 and count >= 5 else 0
    order = permuted(list(range(count)), generator_for(seed, "validation", 0))
    return sorted(order[size:]), sorted(order[:size])


def permuted(items: Sequence[T], generator: Generator) -> list[T]:
    """Return items in a random order."""
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]
