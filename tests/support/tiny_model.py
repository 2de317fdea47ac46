"""A complete Stable Diffusion model with random weights for tests, and hypernetworks for it."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import hnloader
from hnloader.network import Architecture, Hypernetwork
from tests.support.small_models import make_scheduler

TEXT_WIDTH = 24
SELF_WIDTH = 16


def save_model(folder: Path) -> Path:
    """Save a pipeline for 32 x 32 images as diffusers does."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, SELF_WIDTH),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    text = CLIPTextConfig(
        vocab_size=54,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=32,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=make_tokenizer(folder.parent / "words"),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_hypernetwork(path: Path, widths: tuple[int, ...] = (SELF_WIDTH, TEXT_WIDTH), seed: int = 0) -> Path:
    """Save a random hypernetwork that changes images a lot."""
    path.write_bytes(_hypernetwork_file(path.name, tuple(widths), seed))
    torch.manual_seed(seed + 100)  # What follows must not depend on whether the file was new.
    return path


@functools.cache
def _hypernetwork_file(file: str, widths: tuple[int, ...], seed: int) -> bytes:
    """Return the file's bytes, which many tests need."""
    torch.manual_seed(seed + 100)
    keys = {"layer_structure": [1, 2, 1], "activation_func": "relu", "activate_output": False}
    hypernetwork = Hypernetwork.new(widths, Architecture((1, 2, 1), "relu"), name=Path(file).stem, metadata=keys)
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    with tempfile.TemporaryDirectory() as folder:
        hnloader.save(hypernetwork, Path(folder) / file)
        return (Path(folder) / file).read_bytes()


def save_checkpoint(model: Path, path: Path) -> Path:
    """Save the model of a diffusers folder as one file with the tensor names of the original Stable Diffusion."""
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    tensors = {}
    for name, tensor in pipeline.unet.state_dict().items():
        tensors["model.diffusion_model." + _original_unet_name(name)] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        tensors["first_stage_model." + _original_vae_name(name)] = tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        name = name if name.startswith("text_model.") else f"text_model.{name}"
        tensors["cond_stage_model.transformer." + name] = tensor
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 1}, path)
    else:
        save_file(tensors, path)
    return path


def make_tokenizer(folder: Path, length: int = 32) -> CLIPTokenizer:
    folder.mkdir(exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length)


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _original_unet_name(name: str) -> str:
    """Return the name in the original layout, for two blocks with one layer each."""
    for ours, original in _UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return original + name[len(ours) :]
    side, block, kind, number, rest = re.fullmatch(
        r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)\.(.*)", name
    ).groups()
    block, number = int(block or 0), int(number)
    if kind == "resnets":
        part, _, leaf = rest.partition(".")
        rest = f"{_RESNET[part]}.{leaf}"
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{rest}"
    if side == "down":
        place = {"resnets": f"{1 + 2 * block}.0", "attentions": f"{1 + 2 * block}.1"}.get(kind, f"{2 + 2 * block}.0")
        return f"input_blocks.{place}.{rest.replace('conv.', 'op.') if kind == 'downsamplers' else rest}"
    place = {"resnets": f"{2 * block + number}.0", "attentions": f"{2 * block + number}.1"}.get(kind)
    return f"output_blocks.{place or f'{2 * block + 1}.2'}.{rest}"


def _original_vae_name(name: str) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda found: f"up.{1 - int(found[1])}.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{1 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{1 + int(found[1])}", name)
    name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("attn_1.group_norm", "attn_1.norm")
    for ours, original in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        name = name.replace(f"attn_1.{ours}.", f"attn_1.{original}.")
    return name


def save_images(folder: Path, count: int = 6, side: int = 48) -> Path:
    """Save images of noise to train on, `side` pixels wide and high, in a new folder: 0.png, 1.png, ..."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder
