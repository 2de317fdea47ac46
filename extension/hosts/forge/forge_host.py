"""Forge 2 and its forks as hosts: Forge, ersatzForge and Forge Neo."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from modules import sd_models, shared
from torch import nn

from ..a1111.rendering import follow
from .forge_base import ForgeBase


class Forge(ForgeBase):
    """See `protocol.WebuiHost`."""

    def model(self) -> Any:
        """Load the model as a job does; before the first job there is none."""
        return sd_models.forge_model_reload()[0]

    def plain_linears(self) -> Callable[[nn.Module], bool]:
        """Return a test for Forge's own Linear, which can also cast, scale, or add LoRAs to its weight in each call.

        A cast to the weight's own type and device changes nothing: ersatzForge requests it of every layer on the CPU.
        4-bit and GGUF layers have other classes.
        """
        linear = follow(sys.modules.get("backend.operations"), "ForgeOperations.Linear")
        if getattr(getattr(linear, "forward", None), "__module__", None) != "backend.operations":
            return lambda module: False
        unet = follow(shared, "sd_model.forge_objects.unet")
        computed = follow(unet, "model.computation_dtype"), follow(unet, "load_device")

        def is_plain(module: nn.Module) -> bool:
            own = module.__dict__
            if type(module) is not linear:
                return False
            parameters = own["_parameters"]
            weight = parameters.get("weight")
            return not (
                (
                    own.get("parameters_manual_cast", True)
                    and (weight is None or (weight.dtype, weight.device) != computed)
                )
                or "forge_online_loras" in own
                or parameters.get("scale_weight") is not None
                or own.get("A", parameters.get("A")) is not None  # ersatzForge's LoRA within a layer
            )

        return is_plain
