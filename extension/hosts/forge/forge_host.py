"""Forge as a host: where its model differs from AUTOMATIC1111's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from modules import sd_models, shared
from torch import nn

from ..a1111.automatic1111 import Automatic1111
from ..a1111.rendering import follow


class Forge(Automatic1111):
    """See `protocol.WebuiHost`."""

    name = "Forge"

    def model(self) -> Any:
        """Load the model as a job does; before the first job there is none."""
        return sd_models.forge_model_reload()[0]

    def unet(self, job: Any = None) -> nn.Module | None:
        """Return the UNet, which all patchers of a model share."""
        model = follow(shared, "sd_model") or getattr(job, "sd_model", None)
        found = follow(model, "forge_objects.unet.model.diffusion_model")
        return found if isinstance(found, nn.Module) else None

    def control_nets(self, job: Any) -> Sequence[nn.Module]:
        """Follow the chain of ControlNets that the job's patcher has."""
        model = follow(shared, "sd_model") or getattr(job, "sd_model", None)
        control = follow(model, "forge_objects.unet.controlnet_linked_list")
        found: dict[int, nn.Module] = {}
        while control is not None:
            network = getattr(control, "control_model", None)
            if isinstance(network, nn.Module):
                found[id(network)] = network
            control = getattr(control, "previous_controlnet", None)
        return list(found.values())

    def plain_linears(self) -> Callable[[nn.Module], bool]:
        """Return a test for Forge's own Linear, which can also cast, scale, or add LoRAs to its weight in each call.

        Its 4-bit and GGUF layers have other classes. Forks without `backend` have no plain layers.
        """
        linear = follow(sys.modules.get("backend.operations"), "ForgeOperations.Linear")
        if getattr(getattr(linear, "forward", None), "__module__", None) != "backend.operations":
            return lambda module: False

        def is_plain(module: nn.Module) -> bool:
            own = module.__dict__
            return type(module) is linear and not (
                own["parameters_manual_cast"]
                or "forge_online_loras" in own
                or own["_parameters"].get("scale_weight") is not None
            )

        return is_plain
