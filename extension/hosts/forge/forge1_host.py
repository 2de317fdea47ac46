"""Forge 1 and its forks as hosts: reForge and Forge Classic. They load models as AUTOMATIC1111 does."""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import nn

from ..a1111.rendering import follow
from .forge_base import ForgeBase

_LAYERS = "ldm_patched.modules.ops"


class Forge1(ForgeBase):
    """See `protocol.WebuiHost`."""

    def plain_linears(self) -> Callable[[nn.Module], bool]:
        """Return a test for the webui's own Linear, which can also cast or change its weight in each call.

        LoRAs replace the weights before a pass.
        """
        module = sys.modules.get(_LAYERS)
        kinds = [follow(module, f"{name}.Linear") for name in ("disable_weight_init", "manual_cast")]
        if nn.Linear.forward.__module__ != nn.Linear.__module__ or not all(kinds):
            return lambda layer: False

        def is_plain(layer: nn.Module) -> bool:
            return type(layer) in kinds and not (
                layer.ldm_patched_cast_weights or getattr(layer, "weight_function", None)
            )

        return is_plain
