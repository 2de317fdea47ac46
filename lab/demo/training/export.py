"""Last stage: the trained parts as files that other programs load."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from hnloader.loading import save
from hnloader.network import Hypernetwork

UNET_FILE = Path("unet") / "diffusion_pytorch_model.safetensors"
_TEXT_FILE = Path("text_encoder") / "model.safetensors"
# The names that every transformers version before 5 writes and that all read.
_TEXT_PREFIX = "text_model."


def export_pipeline(pipeline: StableDiffusionPipeline, folder: Path, tokenizer: Path) -> int:
    """Save the pipeline in half precision, with the tokenizer of another folder; replaces `folder`.

    Returns:
        The size of all its files in bytes.
    """
    if folder.exists():
        shutil.rmtree(folder)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.to(torch.float32)
    # vocab.json and merges.txt are what transformers 4 reads; version 5 wrote tokenizer.json only.
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    _name_as_transformers_4(folder / _TEXT_FILE)
    _forget_places(folder)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def export_hypernetwork(hypernetwork: Hypernetwork, pipeline_folder: Path, path: Path) -> None:
    """Save in the webui's `.pt` format and half precision, naming the UNet by its file's short hash."""
    digest = hashlib.sha256((pipeline_folder / UNET_FILE).read_bytes()).hexdigest()
    hypernetwork.metadata.update(optional_info=None, sd_checkpoint=digest[:10], sd_checkpoint_name="hnloader-demo")
    hypernetwork.requires_grad_(False).half()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(hypernetwork, path)


def _name_as_transformers_4(file: Path) -> None:
    tensors = load_file(file)
    named = {name if name.startswith(_TEXT_PREFIX) else _TEXT_PREFIX + name: tensor for name, tensor in tensors.items()}
    save_file(named, file, metadata={"format": "pt"})


def _forget_places(folder: Path) -> None:
    """Drop the folder names that configs remember from where a part was loaded."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.keys() & {"_name_or_path", "name_or_path"}:
            kept = {key: value for key, value in content.items() if key not in ("_name_or_path", "name_or_path")}
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
