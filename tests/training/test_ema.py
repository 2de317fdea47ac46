"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hnloader.training.ema import Ema


def test_the_average_follows_the_weights_and_is_applied_for_a_while() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    ema = Ema([parameter], 0.9)
    with torch.no_grad():
        parameter.fill_(1.0)
    ema.update(1)  # early steps count more: the decay is 1/10
    ema.update(1000)
    with ema.applied():
        assert parameter.tolist() == pytest.approx([0.91, 0.91])
    assert parameter.tolist() == [1.0, 1.0]


def test_a_decay_of_zero_turns_it_off() -> None:
    parameter = nn.Parameter(torch.ones(2))
    ema = Ema([parameter], 0.0)
    ema.update(1)
    assert ema.values is None
    with ema.applied():
        assert parameter.tolist() == [1.0, 1.0]
