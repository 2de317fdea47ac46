"""Layers of the stand-ins for Forge 1 and its forks: the webui sets `ldm_patched_cast_weights` on those to cast."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class disable_weight_init:  # noqa: N801 - the webui's name
    class Linear(nn.Linear):
        ldm_patched_cast_weights = False

        def forward(self, x: Tensor) -> Tensor:
            if not self.ldm_patched_cast_weights:
                return super().forward(x)
            bias = None if self.bias is None else self.bias.to(x)
            return functional.linear(x, self.weight.to(x), bias)


class manual_cast:  # noqa: N801 - the webui's name
    class Linear(disable_weight_init.Linear):
        ldm_patched_cast_weights = True
