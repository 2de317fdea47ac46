"""Hypernetworks on a UNet by the formula alone: `to_k(h_k(context))` and `to_v(h_v(context))`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.support.standins.unets import CrossAttention


class Wrapped(nn.Module):
    """A projection after the residuals of `(weights and biases by layer, strength)`; relu or nothing between layers."""

    def __init__(self, projection: nn.Module, chain: Sequence[tuple[dict[str, Tensor], float]], relu: bool) -> None:
        super().__init__()
        self.projection, self.chain, self.relu = projection, chain, relu

    def forward(self, context: Tensor) -> Tensor:
        for side, strength in self.chain:
            hidden = context
            weights = [tensor for key, tensor in side.items() if key.endswith("weight")]
            biases = [tensor for key, tensor in side.items() if key.endswith("bias")]
            for position, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                hidden = hidden.relu() if position and self.relu else hidden
                hidden = hidden @ weight.T + bias
            context = context + strength * hidden
        return self.projection(context)


def wrap(unet: nn.Module, files: Sequence[tuple[Path, float]]) -> None:
    """Wrap all `to_k` and `to_v` of a stand-in's UNet in a chain of `.pt` files with strengths."""
    trees = [(torch.load(path, weights_only=True), strength) for path, strength in files]
    for module in list(unet.modules()):
        if isinstance(module, CrossAttention):
            for side, name in enumerate(("to_k", "to_v")):
                width = getattr(module, name).in_features
                chain = [(tree[width][side], strength) for tree, strength in trees]
                relu = {tree.get("activation_func") for tree, _ in trees} == {"relu"}
                setattr(module, name, Wrapped(getattr(module, name), chain, relu))
