"""Whole pipelines of diffusers, each against the same pipeline with the reference's UNet."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from peft import LoraConfig, get_peft_model_state_dict

from hnloader.attention import attach, attachments
from tests.support.small_models import (
    WIDTHS,
    assert_same,
    assert_untouched,
    fingerprint,
    make_controlnet,
    make_hypernetwork,
    make_scheduler,
    make_text_encoder,
    make_unet,
    make_vae,
    reference,
)

IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
MASK = (torch.arange(32 * 32).reshape(1, 1, 32, 32) % 3 > 0).float()
SD = {
    "text to image": (StableDiffusionPipeline, {"height": 32, "width": 32}),
    "img2img": (StableDiffusionImg2ImgPipeline, {"image": IMAGE, "strength": 0.7}),
    "inpaint": (
        StableDiffusionInpaintPipeline,
        {"image": IMAGE, "mask_image": MASK, "height": 32, "width": 32, "strength": 0.9},
    ),
    "controlnet": (StableDiffusionControlNetPipeline, {"image": IMAGE}),
}
SDXL = {
    "sdxl": (StableDiffusionXLPipeline, {"height": 32, "width": 32}),
    "sdxl img2img": (StableDiffusionXLImg2ImgPipeline, {"image": IMAGE, "strength": 0.7}),
}
HN = make_hypernetwork(WIDTHS["sd1"])


@pytest.fixture
def sdxl_components(tokenizer):
    return {
        "unet": make_unet("sdxl"),
        "vae": make_vae(),
        "text_encoder": make_text_encoder(96),
        "text_encoder_2": make_text_encoder(32, projection=32),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "scheduler": make_scheduler(),
    }


def generate(pipeline, steps=5, **arguments) -> torch.Tensor:
    """Return the final latents of a pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a red circle",
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **arguments,
    ).images


def build(kind, components, **others):
    if kind is StableDiffusionControlNetPipeline:
        others = {"controlnet": make_controlnet(make_unet("sd1")), **others}
    return kind(**{**components, **others})


def check(pipeline, twin, hypernetwork, arguments):
    before, plain = fingerprint(pipeline.unet), generate(pipeline, **arguments)
    expected = generate(twin, **arguments)
    with attach(pipeline, hypernetwork, 0.8) as attachment:
        assert attachments(pipeline) == attachments(pipeline.unet) == [attachment]
        assert_same(generate(pipeline, **arguments), expected, 3e-5)
    assert_untouched(pipeline.unet, before)
    assert torch.equal(generate(pipeline, **arguments), plain)
    assert (expected - plain).abs().max() > 0.05


@pytest.mark.parametrize("name", SD)
def test_pipelines_of_sd(sd_components, name):
    kind, arguments = SD[name]
    twin = build(kind, sd_components, unet=reference(sd_components["unet"], [(HN, 0.8, 0.8)]))
    check(build(kind, sd_components), twin, HN, arguments)


@pytest.mark.parametrize("name", SDXL)
def test_pipelines_of_sdxl(sdxl_components, name):
    kind, arguments = SDXL[name]
    hypernetwork = make_hypernetwork(WIDTHS["sdxl"])
    twin = build(kind, sdxl_components, unet=reference(sdxl_components["unet"], [(hypernetwork, 0.8, 0.8)]))
    check(build(kind, sdxl_components), twin, hypernetwork, arguments)


def test_only_the_unet_changes(sd_components):
    pipeline = build(StableDiffusionControlNetPipeline, sd_components)
    modules = [*pipeline.vae.modules(), *pipeline.text_encoder.modules(), *pipeline.controlnet.modules()]
    with attach(pipeline, HN):
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)


def test_attaching_to_a_controlnet(sd_components):
    pipeline = build(StableDiffusionControlNetPipeline, sd_components)
    twin = build(
        StableDiffusionControlNetPipeline,
        sd_components,
        controlnet=reference(pipeline.controlnet, [(HN, 0.8, 0.8)]),
    )
    with attach(pipeline.controlnet, HN, 0.8):
        result = generate(pipeline, image=IMAGE)
    assert_same(result, generate(twin, image=IMAGE), 3e-5)
    assert (result - generate(pipeline, image=IMAGE)).abs().max() > 1e-3


def test_set_strength_during_a_run(sd_components):
    pipeline = build(StableDiffusionPipeline, sd_components)
    plain = generate(pipeline, height=32, width=32)

    def stop(pipe, step, timestep, values):
        if step == 1:
            attachments(pipe)[0].set_strength(0)
        return values

    def resume(pipe, step, timestep, values):
        if step == 3:
            attachments(pipe)[0].set_strength(0.8)
        return values

    with attach(pipeline, HN, 0.8, end=0.4):
        windowed = generate(pipeline, height=32, width=32)
    with attach(pipeline, HN, 0.8):
        assert torch.equal(generate(pipeline, height=32, width=32, callback_on_step_end=stop), windowed)
        assert not torch.equal(windowed, plain)
    with attach(pipeline, HN, 0.8, start=0.8):
        windowed = generate(pipeline, height=32, width=32)
    with attach(pipeline, HN, 0):
        assert torch.equal(generate(pipeline, height=32, width=32, callback_on_step_end=resume), windowed)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, PNDMScheduler, None])
@pytest.mark.parametrize("name", ["text to image", "img2img"])
def test_windows_count_the_steps_of_the_run(sd_components, kind, name):
    if kind is not None:
        sd_components["scheduler"] = kind.from_config(sd_components["scheduler"].config)
    pipeline_kind, arguments = SD[name]
    steps = 10
    pipeline = build(pipeline_kind, sd_components)
    calls: list[bool] = []

    def watch(module, args, kwargs):
        layer = module.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
        calls.append("forward" in layer.__dict__)

    with attach(pipeline, HN, start=0.3, end=0.7):
        pipeline.unet.register_forward_pre_hook(watch, with_kwargs=True)
        generate(pipeline, steps, **arguments)
    timesteps = pipeline.scheduler.timesteps.tolist()[-len(calls) :]
    places = [timesteps.index(t) for t in timesteps]  # PNDM takes one step twice, at the same position
    count = len(calls)
    assert count >= 6
    assert calls == [i / count >= 0.3 and (i + 1) / count <= 0.7 for i in places]
    assert any(calls)


def test_an_exception_in_a_run_detaches(sd_components):
    pipeline = build(StableDiffusionPipeline, sd_components)
    before = fingerprint(pipeline.unet)

    def fail(pipe, step, timestep, values):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), attach(pipeline, HN):
        generate(pipeline, height=32, width=32, callback_on_step_end=fail)
    assert_untouched(pipeline.unet, before)


def test_pipelines_that_share_a_unet_share_attachments(sd_components):
    one = build(StableDiffusionPipeline, sd_components)
    other = StableDiffusionImg2ImgPipeline(**one.components)
    attachment = attach(one, HN)
    assert attachments(other) == [attachment]
    changed = generate(other, image=IMAGE)
    attachment.detach()
    assert not torch.equal(changed, generate(other, image=IMAGE))


def test_a_deep_copy_of_a_pipeline(sd_components):
    pipeline = build(StableDiffusionPipeline, sd_components)
    attachment = attach(pipeline, HN, 0.8, end=0.5)
    expected = generate(pipeline, height=32, width=32)
    twin = copy.deepcopy(pipeline)
    attachment.detach()
    assert torch.equal(generate(twin, height=32, width=32), expected)


# LoRA as pipelines load it


def lora_state_dict():
    """Make LoRA weights under diffusers' names."""
    unet = make_unet("sd1")
    torch.manual_seed(7)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian"))
    state = get_peft_model_state_dict(unet, adapter_name="default")
    return {
        f"unet.{name}": torch.randn_like(tensor) * 0.05 if "lora_B" in name else tensor
        for name, tensor in state.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_loading_and_unloading_lora_weights(sd_components, when):
    size = {"height": 32, "width": 32}
    pipeline = build(StableDiffusionPipeline, sd_components)
    plain = generate(pipeline, **size)
    twin = build(StableDiffusionPipeline, sd_components, unet=copy.deepcopy(pipeline.unet))
    twin.load_lora_weights(lora_state_dict())
    twin.unet = reference(twin.unet, [(HN, 0.8, 0.8)])
    expected = generate(twin, **size)
    twin.unload_lora_weights()
    hypernetwork_alone = generate(twin, **size)
    assert (expected - hypernetwork_alone).abs().max() > 1e-3

    if when == "before":
        pipeline.load_lora_weights(lora_state_dict())
    attachment = attach(pipeline, HN, 0.8)
    if when == "after":
        generate(pipeline, steps=1, **size)
        pipeline.load_lora_weights(lora_state_dict())
    assert_same(generate(pipeline, **size), expected, 3e-5)
    pipeline.fuse_lora()
    assert_same(generate(pipeline, **size), expected, 3e-5)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    assert_same(generate(pipeline, **size), hypernetwork_alone, 3e-5)
    attachment.detach()
    assert_same(generate(pipeline, **size), plain)
    assert all(not m._forward_pre_hooks and "forward" not in vars(m) for m in pipeline.unet.modules())


# Offloading


def offload_model(pipeline):
    pipeline.enable_model_cpu_offload(device="cpu")


def offload_sequentially(pipeline):
    """Offload as enable_sequential_cpu_offload does, which accelerate refuses from the CPU to the CPU."""
    cpu_offload(pipeline.unet, execution_device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("offload", [offload_model, offload_sequentially])
@pytest.mark.parametrize("when", ["before", "after"])
def test_offloading_of_a_pipeline(sd_components, offload, when):
    size = {"height": 32, "width": 32}
    pipeline = build(StableDiffusionPipeline, sd_components)
    plain = generate(pipeline, **size)
    twin = build(StableDiffusionPipeline, sd_components, unet=reference(pipeline.unet, [(HN, 0.8, 0.8)]))
    expected = generate(twin, **size)
    if when == "before":
        offload(pipeline)
    attachment = attach(pipeline, HN, 0.8)
    if when == "after":
        offload(pipeline)
    assert hasattr(pipeline.unet, "_hf_hook")
    assert_same(generate(pipeline, **size), expected, 3e-5)
    attachment.detach()
    assert torch.equal(generate(pipeline, **size), plain)
