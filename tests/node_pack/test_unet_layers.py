"""The layers of ComfyUI's models."""

from __future__ import annotations

import torch

from tests.support.standins.comfyui_host import Host
from tests.support.standins.comfyui_model import make_model


def test_each_layer_has_the_place_that_its_patch_is_called_with(comfyui: Host) -> None:
    layers = comfyui.part("unet_layers")
    model = make_model()
    known = layers.layers_of(model.model.diffusion_model, model.model)
    called = []

    def patch(kind: str) -> object:
        def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> tuple[torch.Tensor, ...]:
            called.append((layers.place_of(options, kind), k.shape[-1]))
            return q, k, v

        return run

    model.set_model_patch(patch("self"), "attn1_patch")
    model.set_model_patch(patch("cross"), "attn2_patch")
    model.model.diffusion_model(
        torch.zeros(1, 4, 4, 4), torch.zeros(1, 7, 64), dict(model.model_options["transformer_options"])
    )
    assert sorted(called) == sorted((place, site.width) for place, site in zip(known.places, known.sites, strict=True))


def test_a_compiled_model_has_the_same_layers(comfyui: Host) -> None:
    layers = comfyui.part("unet_layers")
    model = make_model().model
    compiled = torch.compile(model.diffusion_model)
    assert layers.layers_of(compiled, model).places == layers.layers_of(model.diffusion_model, model).places
