"""Forge as a host: where its model differs from AUTOMATIC1111's."""

from __future__ import annotations

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
