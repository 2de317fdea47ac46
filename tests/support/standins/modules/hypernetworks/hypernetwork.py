"""The stand-in host's own hypernetworks: `Linear`s with relu between them, applied by its attention layers."""

from __future__ import annotations

from pathlib import Path

import torch
from modules import shared
from torch import Tensor
from torch.nn import functional


class Hypernetwork:
    def __init__(self, name: str, strength: float) -> None:
        self.name, self.strength = name, strength
        self.tensors = torch.load(shared.hypernetworks[name], weights_only=True)

    def __call__(self, context_k: Tensor, context_v: Tensor) -> tuple[Tensor, Tensor]:
        sides = self.tensors.get(context_k.shape[-1])
        if sides is None:
            return context_k, context_v
        return self._apply(sides[0], context_k), self._apply(sides[1], context_v)

    def _apply(self, side: dict[str, Tensor], x: Tensor) -> Tensor:
        keys = [key[: -len("weight")] for key in side if key.endswith("weight")]
        hidden = x.float()
        for position, key in enumerate(keys):
            hidden = functional.linear(hidden.relu() if position else hidden, side[key + "weight"], side[key + "bias"])
        return x + (hidden * self.strength).to(x.dtype)


def list_hypernetworks(path: str) -> dict[str, str]:
    """The host's own list: `.pt` files alone, by their stems."""
    files = sorted(Path(path).rglob("*.pt"), key=lambda file: str(file).lower())
    return {file.stem: str(file) for file in files if file.stem != "None"}


def load_hypernetworks(names: list[str], multipliers: list[float]) -> None:
    pairs = zip(names, multipliers, strict=True)
    shared.loaded_hypernetworks[:] = [Hypernetwork(name, each) for name, each in pairs if name in shared.hypernetworks]
