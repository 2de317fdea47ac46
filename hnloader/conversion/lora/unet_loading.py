"""Build the UNet of a model that comes without a text encoder, offline."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from hnloader.conversion.lora.unet_weights import UNetWeights
from hnloader.errors import ModelError
from hnloader.families import family_named
from hnloader.files import read_regular
from hnloader.pipelines import choose_device, choose_dtype, quiet

__all__ = ["load_unet_file", "load_unet_folder"]


def load_unet_folder(path: Path, device: str, dtype: str) -> nn.Module:
    """Load the UNet of a diffusers folder. Raises ModelError."""
    from diffusers import UNet2DConditionModel

    try:
        with quiet():
            unet = UNet2DConditionModel.from_pretrained(path, local_files_only=True)
    except Exception as error:  # safetensors, json and diffusers each raise their own
        raise ModelError(f"{path}: cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return _place(unet, device, dtype)


def load_unet_file(
    path: Path, weights: UNetWeights, family: str | None, config: str | os.PathLike[str] | None, device: str, dtype: str
) -> nn.Module:
    """Load the UNet of a single file. Raises ModelError."""
    from diffusers import UNet2DConditionModel

    settings = _unet_config(path, family, config)
    try:
        with quiet():
            if weights.original:
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / "config.json").write_text(json.dumps(settings), encoding="utf-8")
                    unet = UNet2DConditionModel.from_single_file(os.fspath(path), config=folder, local_files_only=True)
            else:
                unet = UNet2DConditionModel.from_config(settings)
                unet.load_state_dict({name: weights.read(name) for name in weights.names})
    except Exception as error:  # safetensors, torch and diffusers each raise their own
        raise ModelError(f"{path}: cannot be loaded as a UNet: {str(error).strip().splitlines()[0]}") from error
    return _place(unet, device, dtype)


def _unet_config(path: Path, family: str | None, config: str | os.PathLike[str] | None) -> dict[str, object]:
    if config is not None:
        for file in (Path(config) / "unet" / "config.json", Path(config) / "config.json"):
            if file.is_file():
                found: dict[str, object] = json.loads(read_regular(file))
                return found
        raise ModelError(f"{config}: found no unet/config.json. Give a diffusers folder of the same kind of model.")
    known = family_named(family)
    if known is None or not known.takes_hypernetworks:
        raise ModelError(
            f"{path}: the family of this UNet is unknown. Give a diffusers folder of the same kind of model as config."
        )
    return known.unet_config()


def _place(unet: Any, device: str, dtype: str) -> nn.Module:
    target = choose_device(device)
    with quiet():
        placed: nn.Module = unet.to(device=target, dtype=choose_dtype(dtype, target)).eval()
    return placed
