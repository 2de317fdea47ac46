"""Batches of texts: about as many tokens in each, and no document sees another."""

from __future__ import annotations

import random

import pytest
import torch

from hnloader.training.text_batches import TextBatches, grouped, padded
from hnloader.training.text_dataset import Row


def make_rows(*lengths: int) -> list[Row]:
    return [
        Row(torch.full((length,), index + 1), torch.ones(length, dtype=torch.bool))
        for index, length in enumerate(lengths)
    ]


def names(rows: list[Row]) -> list[int]:
    return [int(row.tokens[0]) for row in rows]


@pytest.mark.parametrize("seed", range(20))
def test_an_epoch_shows_each_row_once(seed: int) -> None:
    chosen = random.Random(seed)
    block = chosen.choice([4, 16, 64])
    rows = make_rows(*(chosen.randint(2, block) for _ in range(chosen.randint(1, 60))))
    tokens = block * chosen.randint(1, 3)
    batches = TextBatches(rows, tokens, seed)
    epochs = [[names(batches[index]) for index in range(e * len(batches), (e + 1) * len(batches))] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(name for batch in epoch for name in batch) == list(range(1, len(rows) + 1))
        assert all(epoch)
    total = sum(len(row.tokens) for row in rows)
    if total >= 2 * tokens:
        for index in range(len(batches)):
            assert sum(len(row.tokens) for row in batches[index]) < 2 * tokens + block
    # A resumed training run asks for any batch first.
    assert names(TextBatches(rows, tokens, seed)[len(batches)]) == epochs[1][0]
    if len(rows) > 20:
        assert epochs[0] != epochs[1]


def test_groups_have_similar_lengths() -> None:
    rows = make_rows(100, 3, 90, 74, 30, 9, 29)
    assert [[len(row.tokens) for row in group] for group in grouped(rows)] == [[100, 90], [74], [30, 29], [9, 3]]


def test_padding_is_at_the_end_and_never_trained() -> None:
    tokens, trained = padded(make_rows(3, 1), torch.device("cpu"))
    assert tokens.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert trained.tolist() == [[True] * 3, [True, False, False]]
