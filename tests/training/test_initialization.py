"""Initial weights of a hypernetwork."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hnloader.network import Architecture, Hypernetwork
from hnloader.training.initialization import initialize

WIDTH = 64
STDS = {
    "Normal": 0.01,
    "XavierUniform": math.sqrt(2 / (3 * WIDTH)),
    "XavierNormal": math.sqrt(2 / (3 * WIDTH)),
    "KaimingUniform": math.sqrt(2 / WIDTH),
    "KaimingNormal": math.sqrt(2 / WIDTH),
}


@pytest.mark.parametrize("kind", STDS)
def test_the_standard_deviation_of_each_kind(kind: str) -> None:
    hypernetwork = Hypernetwork.new((WIDTH,), Architecture(activation="relu", norm=True)).requires_grad_(False)
    initialize(hypernetwork, kind, seed=0)
    layers = [module for module in hypernetwork.modules() if isinstance(module, nn.Linear)]
    first = layers[0].weight
    assert first.shape == (2 * WIDTH, WIDTH)
    assert float(first.std()) == pytest.approx(STDS[kind], rel=0.05)
    assert ("Uniform" in kind) == (float(first.abs().max()) < 2 * STDS[kind])
    norms = [module for module in hypernetwork.modules() if isinstance(module, nn.LayerNorm)]
    assert all(float(norm.weight.abs().max()) < 0.1 for norm in norms)
    assert all(not bool(module.bias.any()) for module in (*layers, *norms))


def test_a_seed_gives_the_same_weights() -> None:
    made = [Hypernetwork.new((8,), Architecture()) for _ in range(3)]
    for hypernetwork, seed in zip(made, (1, 1, 2), strict=True):
        initialize(hypernetwork, "Normal", seed)
    one, same, other = (next(iter(each.parameters())) for each in made)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
