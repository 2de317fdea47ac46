"""Write checkpoints with random weights. ComfyUI's Python runs this in its folder.

    python random_checkpoints.py FOLDER [--webuis]

For ComfyUI: SD 1, SD 2, SDXL and Flux, whose UNets have two levels, so that a step takes a second. Flux has one block,
for the message that refuses it. For the webuis: SD 1 in its full shape, a ControlNet for it, and SDXL twice. One file
has the first half of its UNet in full, which Forge Classic needs. The other has the UNet of SSD-1B, for AUTOMATIC1111.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))
FOLDER = Path(sys.argv[1])
FOR_WEBUIS = "--webuis" in sys.argv
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options

comfy.options.enable_args_parsing()

import comfy.ops
import comfy.sd1_clip
import comfy.sdxl_clip
import torch
import yaml
from comfy.cldm.cldm import ControlNet
from comfy.ldm.flux.model import Flux
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
OPS = comfy.ops.disable_weight_init
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "transformer_depth_middle": 1,
    "legacy": False,
}
SD1 = {"context_dim": 768, "num_heads": 8, "num_head_channels": -1, "use_linear_in_transformer": False}
SD2 = {"context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}
SDXL = {
    "context_dim": 2048,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": (1, 2, 4),
}
SMALL = {
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
}
# The smallest depths that ComfyUI knows, those of Segmind Vega.
VEGA = {"transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2]}
# The depths of the second half of a UNet are free but in AUTOMATIC1111.
HALF_SDXL = {"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1]}
SSD_1B = {"transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 4, 4, 4]}
FULL_SD1 = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def randomized(shapes: State, seed: int, prefix: str = "") -> State:
    """Return a state of these shapes with random weights whose outputs keep about the size of their inputs."""
    torch.manual_seed(seed)
    state = {}
    for name, tensor in shapes.items():
        if not tensor.is_floating_point():
            value = tensor
        elif tensor.ndim == 1:
            value = 0.02 * torch.randn(tensor.shape) + name.endswith("weight")
        else:
            value = torch.randn(tensor.shape) * (0.5 / tensor[0].numel()) ** 0.5
        state[prefix + name] = value
    return state


def unet(*configs: dict[str, Any]) -> State:
    """Return the state of a UNet. Later configurations replace values of earlier ones."""
    config = UNET | {"out_channels": 4}
    for more in configs:
        config |= more
    shapes = UNetModel(**config, operations=OPS, dtype=torch.float16).state_dict()
    return randomized(shapes, 1, "model.diffusion_model.")


def vae() -> State:
    """Return the state of a full autoencoder, because ComfyUI knows no smaller one."""
    return randomized(AutoencoderKL(embed_dim=4, ddconfig=VAE).state_dict(), 2, "first_stage_model.")


def clip_l(prefix: str) -> State:
    """Return the state of the text encoder of SD 1, which is also the first one of SDXL.

    AUTOMATIC1111 divides by the mean of its output, so its last norm has a bias.
    """
    clip = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float32)
    shapes = {name: value for name, value in clip.transformer.state_dict().items() if "text_projection" not in name}
    state = randomized(shapes, 3, f"{prefix}.transformer.")
    state[f"{prefix}.transformer.text_model.final_layer_norm.bias"] += 0.1
    return state


def clip_g(prefix: str) -> State:
    """Return the state of SDXL's second text encoder in the names of open_clip, with 32 layers of 1280."""
    width, norm, layer = 1280, ("weight", "bias"), "transformer.resblocks"
    shapes = {"token_embedding.weight": (49408, width), "positional_embedding": (77, width)}
    shapes |= {"text_projection": (width, width), "logit_scale": ()}
    shapes |= {f"ln_final.{part}": (width,) for part in norm}
    for index in range(32):
        parts = {"attn.in_proj": 3 * width, "attn.out_proj": width, "mlp.c_fc": 4 * width, "mlp.c_proj": width}
        for part, outputs in parts.items():
            inputs = 4 * width if part == "mlp.c_proj" else width
            # in_proj is a parameter of the attention itself, the others are layers.
            join = "_" if part == "attn.in_proj" else "."
            shapes[f"{layer}.{index}.{part}{join}weight"] = (outputs, inputs)
            shapes[f"{layer}.{index}.{part}{join}bias"] = (outputs,)
        shapes |= {f"{layer}.{index}.{name}.{part}": (width,) for name in ("ln_1", "ln_2") for part in norm}
    state = randomized({name: torch.empty(shape) for name, shape in shapes.items() if shape}, 4, f"{prefix}.model.")
    state[f"{prefix}.model.ln_final.bias"] += 0.1
    return state | {f"{prefix}.model.logit_scale": torch.tensor(4.6)}


def controlnet() -> State:
    """Return the state of a ControlNet for SD 1, whose last layers are not zero as those of a new one are."""
    config = UNET | SD1 | FULL_SD1
    del config["transformer_depth_output"]
    shapes = ControlNet(**config, hint_channels=3, operations=OPS, dtype=torch.float16).state_dict()
    return randomized(shapes, 5, "control_model.")


def flux() -> State:
    """Return the state of a Flux transformer of one block, all zero."""
    model = Flux(
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
    return {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}


def ssd_1b_config() -> dict[str, Any]:
    """Return the configuration that AUTOMATIC1111 needs for the UNet of SSD-1B."""

    def target(name: str, **params: Any) -> dict[str, Any]:
        return {"target": name, "params": params}

    diffusion, encoders = "sgm.modules.diffusionmodules", "sgm.modules.encoders.modules"
    denoiser = target(
        f"{diffusion}.denoiser.DiscreteDenoiser",
        num_idx=1000,
        weighting_config={"target": f"{diffusion}.denoiser_weighting.EpsWeighting"},
        scaling_config={"target": f"{diffusion}.denoiser_scaling.EpsScaling"},
        discretization_config={"target": f"{diffusion}.discretizer.LegacyDDPMDiscretization"},
    )
    network = target(
        f"{diffusion}.openaimodel.UNetModel",
        in_channels=4,
        out_channels=4,
        model_channels=320,
        attention_resolutions=[4, 2],
        num_res_blocks=2,
        channel_mult=[1, 2, 4],
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        transformer_depth=[0, 2, 4],
        transformer_depth_middle=1,
        context_dim=2048,
        num_classes="sequential",
        adm_in_channels=2816,
        use_checkpoint=False,
        legacy=False,
        spatial_transformer_attn_type="softmax-xformers",
    )
    texts = [
        target(f"{encoders}.FrozenCLIPEmbedder", layer="hidden", layer_idx=11),
        target(
            f"{encoders}.FrozenOpenCLIPEmbedder2",
            arch="ViT-bigG-14",
            version="laion2b_s39b_b160k",
            freeze=True,
            layer="penultimate",
            always_return_pooled=True,
            legacy=False,
        ),
    ]
    sizes = {
        key: target(f"{encoders}.ConcatTimestepEmbedderND", outdim=256)
        for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    }
    inputs = [("txt", model) for model in texts] + list(sizes.items())
    conditioner = target(
        "sgm.modules.GeneralConditioner",
        emb_models=[{"is_trainable": False, "input_key": key} | model for key, model in inputs],
    )
    first_stage = target(
        "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
        embed_dim=4,
        monitor="val/rec_loss",
        ddconfig=VAE | {"attn_type": "vanilla-xformers"},
        lossconfig={"target": "torch.nn.Identity"},
    )
    model = target(
        "sgm.models.diffusion.DiffusionEngine",
        scale_factor=0.13025,
        disable_first_stage_autocast=True,
        denoiser_config=denoiser,
        network_config=network,
        conditioner_config=conditioner,
        first_stage_config=first_stage,
    )
    return {"model": model}


def save(name: str, *states: State) -> None:
    """Save the states together in float16, in which the webuis' checks want them (docs/dev/real-hosts.md)."""
    merged = {key: value.to(torch.float16).contiguous() for state in states for key, value in state.items()}
    save_file(merged, FOLDER / f"{name}.safetensors")
    print(name, sum(value.numel() for value in merged.values()) // 1_000_000, "M values")


def main() -> None:
    """Write the checkpoints for ComfyUI, or those for the webuis."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if FOR_WEBUIS:
        save("random-sd1", unet(SD1, FULL_SD1), vae(), clip_l("cond_stage_model"))
        save("random-control", controlnet())
        encoders = [clip_l("conditioner.embedders.0"), clip_g("conditioner.embedders.1")]
        save("random-sdxl", unet(SDXL, HALF_SDXL), vae(), *encoders)
        save("random-ssd-1b", unet(SDXL, SSD_1B), vae(), *encoders)
        (FOLDER / "random-ssd-1b.yaml").write_text(yaml.safe_dump(ssd_1b_config()), encoding="utf-8")
    else:
        save("sd1", unet(SMALL, SD1), vae(), clip_l("cond_stage_model"))
        save("sd2", unet(SMALL, SD2))
        save("sdxl", unet(SMALL, SDXL, VEGA))
        save("flux", flux())


main()
