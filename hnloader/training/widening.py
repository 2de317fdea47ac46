"""Give a predicted hypernetwork a wider hidden layer before it is trained; at first, it computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hnloader.network import SIDES, Hypernetwork, linear_layers

__all__ = ["widened"]


@torch.no_grad()
def widened(hypernetwork: Hypernetwork, layer_structure: Sequence[float], seed: int) -> Hypernetwork:
    """Return a hypernetwork with more values in its hidden layer.

    The new values have random inputs, and no effect before they are trained.

    Args:
        hypernetwork: A hypernetwork with one hidden layer, as a predictor makes it.
        layer_structure: The wanted sizes as multiples of the width, such as (1, 2, 1).
        seed: Seed of the random numbers.

    Returns:
        The same hypernetwork if `layer_structure` is not wider or has another number of layers.
    """
    architecture = hypernetwork.architecture
    assert architecture is not None
    if len(layer_structure) != 3 or layer_structure[1] <= architecture.layer_structure[1]:
        return hypernetwork
    wide = replace(architecture, layer_structure=tuple(layer_structure))
    metadata = {**hypernetwork.metadata, **wide.to_metadata()}
    made = Hypernetwork.new(hypernetwork.scopes, wide, name=hypernetwork.name, metadata=metadata)
    random = torch.Generator().manual_seed(seed)
    for scope in made.scopes:
        for side in SIDES:
            first, second = linear_layers(hypernetwork.side(scope, side))
            new_first, new_second = linear_layers(made.side(scope, side))
            hidden, width = first.weight.shape
            new_first.weight.normal_(0, width**-0.5, generator=random)
            new_first.bias.zero_()
            new_second.weight.zero_()
            new_first.weight[:hidden], new_first.bias[:hidden] = first.weight, first.bias
            new_second.weight[:, :hidden] = second.weight
            new_second.bias.copy_(second.bias)
    return made
