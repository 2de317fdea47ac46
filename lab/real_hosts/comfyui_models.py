"""Write checkpoints with random weights for ComfyUI: SD 1, SD 2, SDXL and Flux. Its Python runs this in its folder.

    python comfyui_models.py FOLDER

The UNets have two levels, so that a step takes a second. Flux has one block, for the message that refuses it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
FOLDER = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options

comfy.options.enable_args_parsing()

import comfy.ops
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file

OPS = comfy.ops.disable_weight_init
SMALL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
}
UNETS = {
    "sd1": {"context_dim": 768, "num_heads": 8, "num_head_channels": -1, "use_linear_in_transformer": False},
    "sd2": {"context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True},
    "sdxl": {
        "context_dim": 2048,
        "num_heads": -1,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
        "num_res_blocks": [2, 2, 2],
        "channel_mult": (1, 2, 4),
        # The smallest depths that ComfyUI knows, those of Segmind Vega.
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    },
}


def randomized(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Return a state with random weights whose outputs keep about the size of their inputs."""
    torch.manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor
        elif tensor.ndim == 1:
            state[name] = 0.02 * torch.randn(tensor.shape) + name.endswith("weight")
        else:
            state[name] = torch.randn(tensor.shape) * (0.5 / tensor[0].numel()) ** 0.5
    return state


def vae() -> dict[str, torch.Tensor]:
    """Return the state of a full autoencoder, because ComfyUI knows no smaller one."""
    config = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    config |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    return {
        f"first_stage_model.{name}": value
        for name, value in randomized(AutoencoderKL(embed_dim=4, ddconfig=config), 2).items()
    }


def text_encoders(name: str) -> dict[str, torch.Tensor]:
    """Return the state of the text encoder, in the names of the original checkpoints; SDXL's is left out."""
    if name != "sd1":
        return {}
    clip = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float32)
    state = randomized(clip.transformer, 3)
    return {
        f"cond_stage_model.transformer.{name}": value for name, value in state.items() if "text_projection" not in name
    }


FOLDER.mkdir(parents=True, exist_ok=True)
for name, config in UNETS.items():
    unet = UNetModel(**{**SMALL, **config}, operations=OPS, dtype=torch.float32)
    state = {f"model.diffusion_model.{key}": value for key, value in randomized(unet, 1).items()}
    if name == "sd1":
        state |= vae() | text_encoders(name)
    save_file(
        {key: value.to(torch.float16).contiguous() for key, value in state.items()}, FOLDER / f"{name}.safetensors"
    )
    print(name, sum(value.numel() for value in state.values()) // 1_000_000, "M values")
flux = Flux(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    patch_size=2,
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_ratio=4.0,
    num_heads=24,
    depth=1,
    depth_single_blocks=1,
    axes_dim=[16, 56, 56],
    theta=10000,
    qkv_bias=True,
    guidance_embed=True,
    dtype=torch.float16,
    operations=OPS,
)
save_file(
    {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in flux.state_dict().items()},
    FOLDER / "flux.safetensors",
)
