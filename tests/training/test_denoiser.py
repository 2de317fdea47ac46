"""Predictions, targets and loss weights of the frozen model, for all families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import Tensor

import hnloader
from hnloader.attention import find_sites
from hnloader.network import Architecture, Hypernetwork
from hnloader.pipelines import load_model
from hnloader.training.denoiser import Batch, Denoiser


@pytest.fixture
def denoiser(tiny_model: Any) -> Denoiser:
    return Denoiser(load_model(tiny_model, device="cpu").pipeline)


def batch(denoiser: Denoiser, times: list[int], pooled: Tensor | None = None, sizes: Tensor | None = None) -> Batch:
    random = torch.Generator().manual_seed(0)
    count = len(times)
    latents, noise = (torch.randn(count, 4, 16, 16, generator=random) for _ in range(2))
    width = denoiser.unet.config.cross_attention_dim
    states = torch.randn(count, 7, width, generator=random)
    return Batch(latents, noise, torch.tensor(times), states, pooled, sizes)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_targets_match_the_scheduler(kind: str, denoiser: Denoiser) -> None:
    pipeline = denoiser.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
    made = Denoiser(pipeline)
    given = batch(made, [10, 500, 990])
    seen = {}
    handle = made.unet.register_forward_pre_hook(lambda module, args: seen.update(noisy=args[0]))
    prediction, target = made.predict(given)
    handle.remove()
    assert prediction.shape == target.shape
    noisy = pipeline.scheduler.add_noise(given.latents, given.noise, given.timesteps)
    torch.testing.assert_close(seen["noisy"], noisy)
    velocity = pipeline.scheduler.get_velocity(given.latents, given.noise, given.timesteps)
    expected = {"epsilon": given.noise, "sample": given.latents, "v_prediction": velocity}
    torch.testing.assert_close(target, expected[kind])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_reduces_the_weight_of_low_noise(kind: str, denoiser: Denoiser) -> None:
    pipeline = denoiser.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
    made = Denoiser(pipeline)
    given = batch(made, [0, 100, 900])
    with torch.no_grad():
        weights = made.losses(given, snr_gamma=5.0) / made.losses(given)
    ratio = made.alphas_cumprod[given.timesteps] / (1 - made.alphas_cumprod[given.timesteps])
    assert ratio[0] > 5 > ratio[2]
    expected = ratio.clamp(max=5) / (ratio if kind == "epsilon" else ratio + 1)
    torch.testing.assert_close(weights, expected)


def test_zero_terminal_snr_gives_finite_losses(denoiser: Denoiser) -> None:
    pipeline = denoiser.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    made = Denoiser(pipeline)
    with torch.no_grad():
        assert torch.isfinite(made.losses(batch(made, [999]), snr_gamma=5.0)).all()


def test_latents_match_the_vae(denoiser: Denoiser) -> None:
    from hnloader.training.pixels import Sample

    pixels = torch.rand(3, 32, 32) * 2 - 1
    mean, deviation = denoiser.encode_image(Sample(pixels, None, (32, 32), (0, 0)))
    vae = denoiser.vae
    with torch.no_grad():
        found = vae.encode(pixels.unsqueeze(0)).latent_dist
    torch.testing.assert_close(mean / vae.config.scaling_factor, found.mean[0])
    torch.testing.assert_close(deviation / vae.config.scaling_factor, found.std[0])
    assert (denoiser.vae_scale_factor, denoiser.size_multiple, denoiser.resolution) == (2, 4, 32)


def test_offloaded_parts_are_loaded_for_use(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake of a GPU by recording where parts are moved."""
    from hnloader.training import denoiser as module
    from hnloader.training.pixels import Sample

    pipeline = load_model(tiny_model, device="cpu").pipeline
    names = {id(pipeline.vae): "vae", id(pipeline.text_encoder): "text_encoder"}
    places = dict.fromkeys(names.values(), "card")
    monkeypatch.setattr(module.Denoiser, "device", property(lambda self: torch.device("cpu:0")))
    monkeypatch.setattr(
        module,
        "_move",
        lambda part, device: places.update({names[id(part)]: "card" if device.index == 0 else "cpu"}),
    )
    seen: list[dict[str, str]] = []
    made = Denoiser(pipeline, ("vae", "text_encoder", "text_encoder_2"))
    assert set(places.values()) == {"cpu"}
    handles = [
        part.register_forward_pre_hook(lambda *_: seen.append(dict(places)))
        for part in (pipeline.vae.encoder, pipeline.text_encoder)
    ]
    made.encode_text("a")
    made.encode_image(Sample(torch.zeros(3, 32, 32), None, (32, 32), (0, 0)))
    for handle in handles:
        handle.remove()
    assert seen == [{"vae": "cpu", "text_encoder": "card"}, {"vae": "card", "text_encoder": "cpu"}]
    with made.loaded(), made.loaded("vae"):
        assert set(places.values()) == {"card"}
        made.encode_text("b")
        assert set(places.values()) == {"card"}
    assert set(places.values()) == {"cpu"}


# -- SDXL


def test_sdxl_uses_both_encoders_and_the_sizes(sdxl: StableDiffusionXLPipeline) -> None:
    denoiser = Denoiser(sdxl)
    assert denoiser.is_xl
    text = denoiser.encode_text("a b c")
    assert text.states.shape[-1] == 48 + 80
    assert text.pooled is not None
    given = batch(
        denoiser, [5, 700], pooled=torch.stack([text.pooled] * 2), sizes=torch.tensor([[64, 32, 0, 4, 32, 32]] * 2)
    )
    widths = tuple({site.width for site in find_sites(denoiser.unet)})
    hypernetwork = Hypernetwork.new(widths, Architecture(activation="relu")).requires_grad_(True)
    with hnloader.attach(denoiser.unet, hypernetwork):
        denoiser.losses(given, snr_gamma=5.0).mean().backward()
    grads = [parameter.grad for parameter in hypernetwork.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    assert any(float(grad.abs().max()) > 0 for grad in grads if grad is not None)
    assert all(parameter.grad is None for parameter in denoiser.unet.parameters())
