"""Layers of the stand-in for Forge: each makes its weight and bias from what it stores, at each call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ForgeOperations:
    class Linear(nn.Module):
        """Casts to the input's dtype and device if it stores others, or if memory management moved it away."""

        def __init__(self, in_features: int, out_features: int, bias: bool = True, storage: str = "float32") -> None:
            super().__init__()
            self.in_features, self.out_features = in_features, out_features
            plain = nn.Linear(in_features, out_features, bias)
            dtype = getattr(torch, storage)
            self.weight = nn.Parameter(plain.weight.detach().to(dtype), requires_grad=False)
            self.bias = None if not bias else nn.Parameter(plain.bias.detach().to(dtype), requires_grad=False)
            self.scale_weight: nn.Parameter | None = None
            self.parameters_manual_cast = storage != "float32"

        def forward(self, x: Tensor) -> Tensor:
            weight, bias = self.weight, self.bias
            if self.parameters_manual_cast:
                weight = weight.to(x.device, x.dtype)
                bias = None if bias is None else bias.to(x.device, x.dtype)
            if self.scale_weight is not None:
                weight = weight * self.scale_weight.to(weight)
            for delta in getattr(self, "forge_online_loras", {}).get("weight", ()):
                weight = weight + delta.to(weight)
            return functional.linear(x, weight, bias)


class ForgeOperationsBNB4bits(ForgeOperations):
    class Linear(nn.Module):
        """Stores whole numbers in one row, and a scale for each output."""

        def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
            super().__init__()
            self.in_features, self.out_features = in_features, out_features
            plain = nn.Linear(in_features, out_features, bias)
            self.scale = plain.weight.detach().abs().amax(1, keepdim=True) / 127
            packed = (plain.weight.detach() / self.scale).round().to(torch.int8).flatten()
            self.weight = nn.Parameter(packed, requires_grad=False)
            self.bias = None if not bias else nn.Parameter(plain.bias.detach(), requires_grad=False)
            self.parameters_manual_cast = False

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight.view(self.out_features, self.in_features).float() * self.scale
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return functional.linear(x, weight.to(x.dtype), bias)
