"""What each step sees. Everything random is a function of the seed and the step, so that a resumed training goes on
exactly as an uninterrupted one, and nothing random needs to be saved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator

Key = TypeVar("Key")


@dataclass(frozen=True)
class Draw:
    """One image in one step.

    Attributes:
        image: its index.
        number: counts the draws of the training; what is random about this one follows from it.
    """

    image: int
    number: int


class Order(Sequence[tuple[Draw, ...]]):
    """The batches of a training, one after the other, without end.

    Every round shows each image `repeats` times, in an order of its own; the images of a batch have one size.

    Args:
        sizes: the size that each image is trained at.
        batch_size: images in a batch; the last of a size is filled up with others of that size.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], batch_size: int, repeats: int, seed: int) -> None:
        self._groups: Mapping[tuple[int, int], list[int]] = _grouped(sizes)
        self._batch_size, self._repeats, self._seed = batch_size, repeats, seed
        self._round, self._batches = -1, list[tuple[int, ...]]()

    def __len__(self) -> int:
        """How many batches a round has."""
        return sum(-(-len(group) * self._repeats // self._batch_size) for group in self._groups.values())

    def __getitem__(self, index: int) -> tuple[Draw, ...]:  # type: ignore[override]
        """Batch number `index`, counted from 0; any number is right."""
        round_, place = divmod(index, len(self))
        if round_ != self._round:
            self._round, self._batches = round_, self._shuffled(round_)
        first = index * self._batch_size
        return tuple(Draw(image, first + slot) for slot, image in enumerate(self._batches[place]))

    def _shuffled(self, round_: int) -> list[tuple[int, ...]]:
        generator = random_of(self._seed, "order", round_)
        batches: list[tuple[int, ...]] = []
        for group in self._groups.values():
            shown = [image for _ in range(self._repeats) for image in _permuted(group, generator)]
            short = -len(shown) % self._batch_size
            shown += [group[int(torch.randint(len(group), (), generator=generator))] for _ in range(short)]
            batches += [
                tuple(shown[start : start + self._batch_size]) for start in range(0, len(shown), self._batch_size)
            ]
        return _permuted(batches, generator)


def random_of(seed: int, what: str, number: int) -> Generator:
    """A generator of its own for each (seed, what, number); on the CPU, so that every device sees the same."""
    digest = hashlib.sha256(f"{seed} {what} {number}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def chance(generator: Generator) -> float:
    """A number from 0 to 1."""
    return float(torch.rand((), generator=generator))


def whole(generator: Generator, below: int) -> int:
    """A whole number from 0, below `below`."""
    return int(torch.randint(below, (), generator=generator))


def held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which of `count` images are trained on, and which are kept for measuring (none of fewer than five)."""
    kept = max(round(count * share), 1) if share > 0 and count >= 5 else 0
    order = _permuted(list(range(count)), random_of(seed, "held out", 0))
    return sorted(order[kept:]), sorted(order[:kept])


def _permuted(items: Sequence[Key], generator: Generator) -> list[Key]:
    return [items[index] for index in torch.randperm(len(items), generator=generator).tolist()]


def _grouped(sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return dict(sorted(groups.items()))
