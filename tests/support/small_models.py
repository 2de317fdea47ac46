"""Small models with the layouts of SD 1, SD 2 and SDXL, hypernetworks, and an independent reference for both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hnloader.network import Architecture, Hypernetwork

# The real widths divided by 16.
TEXT_WIDTH = {"sd1": 48, "sd2": 64, "sdxl": 128}
WIDTHS = {"sd1": (20, 40, 48, 80), "sd2": (20, 40, 64, 80), "sdxl": (40, 80, 128)}

torch.set_num_threads(1)


def make_unet(kind: str = "sd1", **changes: object) -> UNet2DConditionModel:
    """Make a random UNet with the block types of the family and a sixteenth of its widths, in eval mode."""
    common = {
        "sample_size": 16,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_WIDTH[kind],
    }
    if kind == "sdxl":
        config = {
            "block_out_channels": (20, 40, 80),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": (2, 4, 8),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        }
    else:
        config = {
            "block_out_channels": (20, 40, 80, 80),
            "attention_head_dim": 4 if kind == "sd1" else (2, 4, 8, 8),
            "use_linear_projection": kind == "sd2",
        }
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{**common, **config, **changes}).eval()
    unet.requires_grad_(False)
    return unet


def make_small_unet() -> UNet2DConditionModel:
    """Make a minimal UNet for slow tests: two attention layers of each kind, of width 20."""
    return make_unet(
        "sd1",
        block_out_channels=(20,),
        down_block_types=("DownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
    )


def unet_inputs(kind: str = "sd1", batch: int = 2, timestep: int = 500, seed: int = 1) -> dict[str, object]:
    """Make keyword arguments for a UNet of this kind."""
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, object] = {
        "sample": torch.randn(batch, 4, 16, 16, generator=generator),
        "timestep": torch.tensor(timestep),
        "encoder_hidden_states": torch.randn(batch, 7, TEXT_WIDTH[kind], generator=generator),
    }
    if kind == "sdxl":
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, 32, generator=generator),
            "time_ids": torch.randn(batch, 6, generator=generator),
        }
    return inputs


def moved(inputs: Mapping[str, object], dtype: torch.dtype, device: torch.device | None = None) -> dict[str, Any]:
    """Move inputs to `dtype` and, if given, `device`; timesteps stay integers."""

    def one(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else None)

    return {name: one(value) for name, value in inputs.items()}


def run(unet: nn.Module, kind: str = "sd1", **changes: object) -> Tensor:
    """Return the UNet's prediction for fixed inputs, without gradients."""
    with torch.no_grad():
        return unet(**{**unet_inputs(kind), **changes}).sample


def make_hypernetwork(
    widths: Sequence[int], seed: int = 0, name: str = "style", activation: str | None = "relu", norm: bool = False
) -> Hypernetwork:
    """Make a random 1-2-1 hypernetwork, strong enough to change the output."""
    torch.manual_seed(seed + 100)
    hypernetwork = Hypernetwork.new(tuple(widths), Architecture((1, 2, 1), activation, norm), name=name)
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.3))
    return hypernetwork.requires_grad_(False)


# A reference that shares no code with the package: an attention processor that computes hypernetworks itself.

Applied = tuple[Hypernetwork, float, float]


class ReferenceProcessor:
    """Plain attention with K = to_k(h_k(context)) and V = to_v(h_v(context)), from the stored tensors."""

    def __init__(self, applied: Sequence[Applied]) -> None:
        self.applied = applied

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        assert attention_mask is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        contexts = {"k": context, "v": context}
        for hypernetwork, *strengths in self.applied:
            for side, strength in zip("kv", strengths, strict=True):
                contexts[side] = self._change(hypernetwork, side, contexts[side], strength)
        query, key, value = attn.to_q(hidden_states), attn.to_k(contexts["k"]), attn.to_v(contexts["v"])
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))

    @staticmethod
    def _change(hypernetwork: Hypernetwork, side: str, context: Tensor, strength: float) -> Tensor:
        tensors = hypernetwork.state_dict()
        active = hypernetwork.architecture.activation == "relu"
        names = [
            f"sides.{context.shape[-1]}.{side}.linear.{index}.{name}"
            for index in (0, 2 if active else 1)
            for name in ("weight", "bias")
        ]
        if names[0] not in tensors:
            return context
        first, first_bias, last, last_bias = (tensors[name].to(context.device, torch.float32) for name in names)
        hidden = context.float() @ first.T + first_bias
        hidden = hidden.clamp(min=0) if active else hidden
        return (context.float() + strength * (hidden @ last.T + last_bias)).to(context.dtype)


def reference(
    unet: UNet2DConditionModel, applied: Sequence[Applied] | Callable[[str], Sequence[Applied]]
) -> UNet2DConditionModel:
    """Copy a plain UNet with the reference processor; `applied` may depend on the layer's name."""
    twin = copy.deepcopy(unet)
    of = applied if callable(applied) else lambda name: applied
    twin.set_attn_processor(
        {name: ReferenceProcessor(of(name.removesuffix(".processor"))) for name in twin.attn_processors}
    )
    return twin


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Assert that the largest difference, relative to the largest value, is small."""
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max() / expected.abs().max()
    assert difference <= tolerance, f"differs by {difference:.2e}"


def fingerprint(model: nn.Module) -> dict[str, object]:
    """Record everything that detaching must restore: tensors, classes, hooks, attributes, processors."""
    hook_dicts = [name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)]
    return {
        "tensors": {
            name: (t.dtype, t.device, t.untyped_storage().data_ptr()) for name, t in model.state_dict().items()
        },
        "bytes": {name: t.detach().clone() for name, t in model.state_dict().items() if t.device.type != "meta"},
        "modules": {
            name: (
                id(module),
                type(module),
                sorted(vars(module)),
                [len(getattr(module, d)) for d in hook_dicts],
            )
            for name, module in model.named_modules()
        },
        "processors": {name: id(processor) for name, processor in getattr(model, "attn_processors", {}).items()},
    }


def assert_untouched(model: nn.Module, before: Mapping[str, object]) -> None:
    """Assert that the model matches its fingerprint."""
    now = fingerprint(model)
    for part in ("tensors", "modules", "processors"):
        assert now[part] == before[part]
    for name, tensor in before["bytes"].items():
        assert torch.equal(tensor, now["bytes"][name]), name


# Pipelines, complete but tiny.


def make_text_encoder(width: int, projection: int | None = None) -> CLIPTextModel | CLIPTextModelWithProjection:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=projection or width,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def make_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def make_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
    with torch.no_grad():
        for name, parameter in controlnet.named_parameters():
            if "controlnet" in name:  # zero in a new model, without effect
                parameter.normal_(std=0.05)
    return controlnet
