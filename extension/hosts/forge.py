"""Forge: AUTOMATIC1111's seams around a model of its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from .a1111 import Automatic1111, _follow


class Forge(Automatic1111):
    """See `WebuiHost`."""

    name = "Forge"

    def _model(self) -> Any:
        """A job loads the model; before the first one there is none."""
        from modules import sd_models

        return sd_models.forge_model_reload()[0]

    def unet(self, processing: Any = None) -> nn.Module | None:
        """All patchers of a model share one UNet."""
        from modules import shared

        model = _follow(shared, "sd_model") or getattr(processing, "sd_model", None)
        found = _follow(model, "forge_objects.unet.model.diffusion_model")
        return found if isinstance(found, nn.Module) else None
