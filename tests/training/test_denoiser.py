"""The model as training sees it: what it predicts, for which families, and how the loss is weighted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import hnloader
from hnloader.network import Architecture, Hypernetwork
from hnloader.pipelines import load_model
from hnloader.training.adapters import Word
from hnloader.training.denoiser import Batch, Denoiser
from tests.support.small_models import make_scheduler, make_unet, make_vae
from tests.support.tiny_model import make_tokenizer


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
def test_what_is_wanted_is_what_the_schedulers_own_formulas_say(kind: str, denoiser: Denoiser) -> None:
    pipeline = denoiser.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
    made = Denoiser(pipeline)
    given = batch(made, [10, 500, 990])
    seen = {}
    handle = made.unet.register_forward_pre_hook(lambda module, args: seen.update(noisy=args[0]))
    said, wanted = made.predict(given)
    handle.remove()
    assert said.shape == wanted.shape
    noisy = pipeline.scheduler.add_noise(given.latents, given.noise, given.timesteps)
    torch.testing.assert_close(seen["noisy"], noisy)
    velocity = pipeline.scheduler.get_velocity(given.latents, given.noise, given.timesteps)
    expected = {"epsilon": given.noise, "sample": given.latents, "v_prediction": velocity}
    torch.testing.assert_close(wanted, expected[kind])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_low_noise_down_and_high_noise_as_it_is(kind: str, denoiser: Denoiser) -> None:
    pipeline = denoiser.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind)
    made = Denoiser(pipeline)
    given = batch(made, [0, 100, 900])
    with torch.no_grad():
        weights = made.losses(given, min_snr=5.0) / made.losses(given)
    ratio = made.alphas[given.timesteps] / (1 - made.alphas[given.timesteps])
    assert ratio[0] > 5 > ratio[2]
    expected = ratio.clamp(max=5) / (ratio if kind == "epsilon" else ratio + 1)
    torch.testing.assert_close(weights, expected)


def test_a_schedule_that_ends_in_pure_noise_gives_finite_losses(denoiser: Denoiser) -> None:
    pipeline = denoiser.pipeline
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    made = Denoiser(pipeline)
    with torch.no_grad():
        assert torch.isfinite(made.losses(batch(made, [999]), min_snr=5.0)).all()


def test_latents_are_what_the_pipeline_would_decode(denoiser: Denoiser) -> None:
    from hnloader.training.pixels import Sample

    pixels = torch.rand(3, 32, 32) * 2 - 1
    mean, deviation = denoiser.encode_image(Sample(pixels, None, (32, 32), (0, 0)))
    vae = denoiser.vae
    with torch.no_grad():
        found = vae.encode(pixels.unsqueeze(0)).latent_dist
    torch.testing.assert_close(mean / vae.config.scaling_factor, found.mean[0])
    torch.testing.assert_close(deviation / vae.config.scaling_factor, found.std[0])
    assert (denoiser.grain_of_latents, denoiser.grain, denoiser.resolution) == (2, 4, 32)


def test_parts_that_are_put_aside_are_there_when_they_are_used(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a graphics card: only where a part was last moved to is noted."""
    from hnloader.training import denoiser as module
    from hnloader.training.pixels import Sample

    pipeline = load_model(tiny_model, device="cpu").pipeline
    names = {id(pipeline.vae): "vae", id(pipeline.text_encoder): "text_encoder"}
    places = dict.fromkeys(names.values(), "card")
    monkeypatch.setattr(module.Denoiser, "device", property(lambda self: torch.device("cpu:0")))
    monkeypatch.setattr(
        module,
        "_move",
        lambda part, device: places.update({names[id(part)]: "card" if device.index == 0 else "aside"}),
    )
    seen: list[dict[str, str]] = []
    made = Denoiser(pipeline, ("vae", "text_encoder", "text_encoder_2"))
    assert set(places.values()) == {"aside"}
    handles = [
        part.register_forward_pre_hook(lambda *_: seen.append(dict(places)))
        for part in (pipeline.vae.encoder, pipeline.text_encoder)
    ]
    made.encode_text("a")
    made.encode_image(Sample(torch.zeros(3, 32, 32), None, (32, 32), (0, 0)))
    for handle in handles:
        handle.remove()
    assert seen == [{"vae": "aside", "text_encoder": "card"}, {"vae": "card", "text_encoder": "aside"}]
    with made.awake(), made.awake("vae"):
        assert set(places.values()) == {"card"}
        made.encode_text("b")
        assert set(places.values()) == {"card"}
    assert set(places.values()) == {"aside"}


# -- SDXL


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    """A random pipeline of SDXL's layout: two text encoders whose states are put side by side."""
    torch.manual_seed(0)
    common = {
        "vocab_size": 54,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    first = CLIPTextModel(CLIPTextConfig(hidden_size=48, **common))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=80, projection_dim=32, **common))
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("words"))
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=make_unet("sdxl"),
        scheduler=make_scheduler(),
    )


def test_sdxl_takes_both_encoders_and_the_six_sizes(sdxl: StableDiffusionXLPipeline) -> None:
    denoiser = Denoiser(sdxl)
    assert denoiser.is_xl
    text = denoiser.encode_text("a b c")
    assert text.states.shape[-1] == 48 + 80
    assert text.pooled is not None
    given = batch(
        denoiser, [5, 700], pooled=torch.stack([text.pooled] * 2), sizes=torch.tensor([[64, 32, 0, 4, 32, 32]] * 2)
    )
    hypernetwork = Hypernetwork.new(denoiser.widths, Architecture(activation="relu")).requires_grad_(True)
    with hnloader.attach(denoiser.unet, hypernetwork):
        denoiser.losses(given, min_snr=5.0).mean().backward()
    grads = [parameter.grad for parameter in hypernetwork.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    assert any(float(grad.abs().max()) > 0 for grad in grads if grad is not None)
    assert all(parameter.grad is None for parameter in denoiser.unet.parameters())


def test_a_word_for_both_encoders_gets_gradients_in_both(sdxl: StableDiffusionXLPipeline) -> None:
    denoiser = Denoiser(sdxl)
    vectors = [torch.nn.Parameter(torch.randn(2, width)) for width in (48, 80)]
    words = [
        Word(sdxl, f"tokenizer{suffix}", f"text_encoder{suffix}", "<w>", each)
        for suffix, each in zip(("", "_2"), vectors, strict=True)
    ]
    plain = denoiser.encode_text("a b").states
    with words[0].known(), words[1].known():
        text = denoiser.encode_text("a <w> b", trained=True)
        assert torch.equal(denoiser.encode_text("a b").states, plain)
        (text.states.sum() + text.pooled.sum()).backward()
    assert all(each.grad is not None and float(each.grad.abs().sum()) > 0 for each in vectors)
    assert torch.equal(denoiser.encode_text("a b").states, plain)
