"""Files for the hosts, written without hnloader, so that the checks do not depend on it."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTHS = (320, 640, 768, 1280)
WIDTHS_XL = (640, 1280, 2048)
LORA = "thread.safetensors"
# `input_blocks.1.1...attn2`, which every UNet has, in the names of LoRA files, and the widths of its projections.
_LORA_SITES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (768, 320),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (768, 320),
}


def save_hypernetwork(
    path: Path, seed: int, widths: tuple[int, ...] = WIDTHS, layers: int = 2, activation: str = "relu"
) -> Path:
    """Write a `.pt` file as AUTOMATIC1111 does. Two layers with relu change an image a lot."""
    random = torch.Generator().manual_seed(seed)

    def side(width: int) -> dict[str, torch.Tensor]:
        tensors = {}
        for layer in range(0, 2 * layers, 2) if activation == "relu" else range(layers):
            tensors[f"linear.{layer}.weight"] = torch.randn(width, width, generator=random) / width**0.5
            tensors[f"linear.{layer}.bias"] = torch.randn(width, generator=random) * 0.1
        return tensors

    tree: dict[object, object] = {width: (side(width), side(width)) for width in widths}
    tree |= {"layer_structure": [1] * (layers + 1), "activation_func": activation, "activate_output": False, "step": 1}
    tree |= {"is_layer_norm": False, "use_dropout": False, "weight_initialization": "Normal", "name": path.stem}
    tree |= {"last_layer_dropout": False, "dropout_structure": [0] * (layers + 1), "optional_info": None}
    tree |= {"sd_checkpoint": None, "sd_checkpoint_name": None}
    content = io.BytesIO()
    torch.save(tree, content)
    # AUTOMATIC1111 refuses the members that newer versions of torch add.
    with zipfile.ZipFile(content) as written, zipfile.ZipFile(path, "w") as kept:
        for name in written.namelist():
            if re.fullmatch(r"[^/]+/(data\.pkl|data/\d+|version)", name):
                kept.writestr(name, written.read(name))
    return path


def save_lora(path: Path) -> Path:
    """Write a LoRA of two projections that hypernetworks change."""
    random = torch.Generator().manual_seed(7)
    tensors = {}
    for name, (inside, outside) in _LORA_SITES.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, inside, generator=random) / inside**0.5
        tensors[f"{name}.lora_up.weight"] = torch.randn(outside, 4, generator=random) / 2
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(tensors, path)
    return path


def save_many(folder: Path, count: int, broken: int) -> None:
    """Write a large collection: links to one file, and `broken` files of four kinds."""
    folder.mkdir()
    whole = save_hypernetwork(folder / "many 0000.pt", seed=9, widths=(320,))
    content = whole.read_bytes()
    kinds = (b"", b"no such format", content[:5000], b"PK\x03\x04" + bytes(2000))
    for number in range(1, count - broken):
        (folder / f"many {number:04}.pt").hardlink_to(whole)
    for number in range(broken):
        (folder / f"broken {number:04}.pt").write_bytes(kinds[number % len(kinds)])
