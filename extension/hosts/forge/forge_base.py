"""The part that Forge and its forks share as hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules import shared
from modules_forge import forge_version
from torch import nn

from ..a1111.automatic1111 import Automatic1111
from ..a1111.rendering import follow
from .webui_names import webui_name


class ForgeBase(Automatic1111):
    """See `protocol.WebuiHost`."""

    def __init__(self) -> None:
        super().__init__()
        self.name = webui_name(str(getattr(forge_version, "version", "")))

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
