"""Initial weights of a new hypernetwork, in the webui's five ways."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from hnloader.network import Hypernetwork

_STD = 0.01


@torch.no_grad()
def initialize(hypernetwork: Hypernetwork, kind: str, seed: int) -> None:
    """Set the weights of every Linear and LayerNorm; biases become zero.

    Args:
        hypernetwork: The hypernetwork to change.
        kind: "Normal" (standard deviation 0.01), "XavierUniform", "XavierNormal", "KaimingUniform" or
            "KaimingNormal". LayerNorms always get "Normal", as in the webui.
        seed: Seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    activation = hypernetwork.architecture.activation if hypernetwork.architecture is not None else None
    gain = float(nn.init.calculate_gain("leaky_relu" if activation == "leakyrelu" else "relu"))
    for module in hypernetwork.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            _fill(module.weight, "Normal" if isinstance(module, nn.LayerNorm) else kind, gain, generator)
            if module.bias is not None:
                module.bias.zero_()


def _fill(weight: Tensor, kind: str, gain: float, generator: Generator) -> None:
    if kind == "Normal":
        std = _STD
    elif kind.startswith("Xavier"):
        std = math.sqrt(2.0 / sum(weight.shape))
    else:
        std = gain / math.sqrt(weight.shape[1])
    if kind.endswith("Uniform"):
        edge = math.sqrt(3) * std
        weight.uniform_(-edge, edge, generator=generator)
    else:
        weight.normal_(0, std, generator=generator)
