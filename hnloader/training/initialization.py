"""How the weights of a new hypernetwork begin: the five ways that the webui offers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from hnloader.network import Hypernetwork

_DEVIATION = 0.01


@torch.no_grad()
def initialize(hypernetwork: Hypernetwork, kind: str, seed: int) -> None:
    """Set the weights of every Linear and LayerNorm.

    Norms begin as in the webui's "Normal" whatever `kind` is: weights from a normal distribution of deviation
    0.01, biases zero.

    Args:
        kind: Normal (deviation 0.01), XavierUniform, XavierNormal, KaimingUniform or KaimingNormal.

    Raises:
        KeyError: there is no such kind.
    """
    generator = torch.Generator().manual_seed(seed)
    activation = hypernetwork.architecture.activation if hypernetwork.architecture is not None else None
    fill = _fillers("leaky_relu" if activation == "leakyrelu" else "relu", generator)
    for module in hypernetwork.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            fill["Normal" if isinstance(module, nn.LayerNorm) else kind](module.weight)
            if module.bias is not None:
                module.bias.zero_()


def _fillers(nonlinearity: str, generator: Generator) -> dict[str, Callable[[Tensor], object]]:
    def xavier(weight: Tensor) -> float:
        outputs, inputs = weight.shape
        return math.sqrt(2.0 / (inputs + outputs))

    def kaiming(weight: Tensor) -> float:
        gain = float(nn.init.calculate_gain(nonlinearity))  # type: ignore[arg-type]
        return gain / math.sqrt(weight.shape[1])

    def uniform(weight: Tensor, deviation: float) -> Tensor:
        edge = math.sqrt(3) * deviation
        return weight.uniform_(-edge, edge, generator=generator)

    return {
        "Normal": lambda weight: weight.normal_(0, _DEVIATION, generator=generator),
        "XavierUniform": lambda weight: uniform(weight, xavier(weight)),
        "XavierNormal": lambda weight: weight.normal_(0, xavier(weight), generator=generator),
        "KaimingUniform": lambda weight: uniform(weight, kaiming(weight)),
        "KaimingNormal": lambda weight: weight.normal_(0, kaiming(weight), generator=generator),
    }
