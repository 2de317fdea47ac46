"""The batches of a training run on texts.

A batch has about the same number of tokens at each step. Each document has its own row, so that it starts at position 0
and sees no other document, in all models. Rows of similar length form a group, which is one call of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hnloader.training.sampler import generator_for, permuted
from hnloader.training.text_dataset import Row

# A row joins a group if it has at least this share of the group's longest row, or only a few tokens less.
_SHARE, _FEW = 0.75, 8
_UNUSED = -100  # of `cross_entropy`


class TextBatches(Sequence[list[Row]]):
    """The endless sequence of batches of a training run. An epoch shows each row once, in a new order.

    Args:
        rows: The training rows.
        tokens: About the number of tokens in a batch. A batch has less than twice that.
        seed: Seed of the order.
    """

    def __init__(self, rows: Sequence[Row], tokens: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._total = sum(len(row.tokens) for row in rows)
        self._count = max(1, self._total // tokens)
        self._epoch, self._batches = -1, list[list[Row]]()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._count

    def __getitem__(self, index: int) -> list[Row]:  # type: ignore[override]
        """Return a batch of any epoch; `index` counts from 0."""
        epoch, place = divmod(index, self._count)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[Row]]:
        batches: list[list[Row]] = [[] for _ in range(self._count)]
        before = 0
        for row in permuted(self._rows, generator_for(self._seed, "order", epoch)):
            length = len(row.tokens)
            # By the middle of the row. No batch is empty, because no row is longer than a batch.
            batches[(2 * before + length) * self._count // (2 * self._total)].append(row)
            before += length
        return batches


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Return rows in groups of similar length, the longest first."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        longest = len(groups[-1][0].tokens) if groups else 0
        if groups and len(row.tokens) >= min(_SHARE * longest, longest - _FEW):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def padded(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tokens and the trained places of a group, [rows, length], padded at the end.

    Attention is causal, so that no token of a row sees the padding after it.
    """
    longest = max(len(row.tokens) for row in rows)
    # With the last token: models warn about rows that end with a padding token.
    tokens = torch.stack([torch.cat([row.tokens, row.tokens[-1:].expand(longest - len(row.tokens))]) for row in rows])
    trained = torch.nn.utils.rnn.pad_sequence([row.trained for row in rows], batch_first=True)
    return tokens.to(device), trained.to(device)


def summed_loss(model: Any, rows: Sequence[Row], device: torch.device) -> Tensor:
    """Return the sum of the losses of the trained tokens of rows, in one call of a language model."""
    tokens, trained = padded(rows, device)
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    labels = tokens[:, 1:].masked_fill(~trained[:, 1:], _UNUSED)
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")


def trained_count(rows: Sequence[Row]) -> int:
    """Return the number of tokens that the loss counts."""
    return sum(int(row.trained[1:].sum()) for row in rows)
