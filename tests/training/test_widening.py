"""A wider hidden layer for a predicted hypernetwork."""

from __future__ import annotations

import pytest
import torch

from hnloader.network import SIDES, Architecture, Hypernetwork
from hnloader.training.widening import widened


def predicted(activation: str = "relu", ratio: float = 1) -> Hypernetwork:
    torch.manual_seed(0)
    return Hypernetwork.new((12, "20:self:0-2"), Architecture((1, ratio, 1), activation), name="a", metadata={"x": "y"})


@pytest.mark.parametrize(("activation", "ratio"), [("relu", 1), ("mish", 0.25), ("linear", 1.5)])
def test_it_computes_the_same_with_a_wider_hidden_layer(activation: str, ratio: float) -> None:
    narrow = predicted(activation, ratio)
    wide = widened(narrow, (1, 4, 1), seed=3)
    assert wide.architecture is not None
    assert wide.architecture.layer_structure == (1, 4, 1)
    assert (wide.scopes, wide.name) == (narrow.scopes, narrow.name)
    assert (wide.metadata["layer_structure"], wide.metadata["x"]) == ([1, 4, 1], "y")
    for scope in narrow.scopes:
        context = torch.randn(3, 5, scope.width)
        for side in SIDES:
            expected = narrow.side(scope, side)(context, 1.0)
            torch.testing.assert_close(wide.side(scope, side)(context, 1.0), expected)


def test_the_new_values_learn_and_follow_from_the_seed() -> None:
    wide, again, other = (widened(predicted(), (1, 2, 1), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(wide.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(wide.parameters(), other.parameters(), strict=True))
    side = wide.requires_grad_(True).side(12, "k")
    side(torch.randn(40, 12), 1.0).pow(2).sum().backward()
    second = [module for module in side.modules() if isinstance(module, torch.nn.Linear)][1]
    assert second.weight.grad is not None
    assert second.weight.grad[:, 12:].abs().amax(0).count_nonzero() == 12


@pytest.mark.parametrize("structure", [(1, 1, 1), (1, 0.5, 1), (1, 1), (1, 4, 4, 1)])
def test_it_stays_if_the_structure_is_not_wider(structure: tuple[float, ...]) -> None:
    narrow = predicted()
    assert widened(narrow, structure, seed=1) is narrow
