"""Write a LoRA of a language model as peft does: a folder with a configuration and a file of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hnloader.files import make_folder, replacing_together
from hnloader.formats.safetensors import write_tensors

WEIGHTS_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
# Between it and the name of the part is the name of the layer in the model.
_PREFIX = "base_model.model."


def write_peft_folder(
    folder: Path,
    layers: Mapping[str, tuple[Tensor, Tensor]],
    alpha: float,
    base: str,
    metadata: Mapping[str, str],
    *,
    transposed: bool = False,
    overwrite: bool = True,
) -> int:
    """Write the folder, or raise HypernetworkError.

    Args:
        folder: The folder.
        layers: By the dotted name of a layer in the model, [rank, inputs] and [outputs, rank], of one rank.
        alpha: Divided by the rank, it scales the change.
        base: The name of the base model.
        metadata: Metadata of the weights.
        transposed: The layers are `Conv1D`, as in GPT-2.
        overwrite: Replace existing files.

    Returns:
        The size of the weights in bytes.
    """
    (rank,) = {len(down) for down, _ in layers.values()}
    tensors = {f"{_PREFIX}{name}.lora_A.weight": down for name, (down, _) in layers.items()}
    tensors |= {f"{_PREFIX}{name}.lora_B.weight": up for name, (_, up) in layers.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(layers),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "modules_to_save": None,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    make_folder(folder)
    paths = (folder / WEIGHTS_NAME, folder / CONFIG_NAME)
    with replacing_together(dict.fromkeys(paths, ()), overwrite=overwrite) as (weights, settings):
        write_tensors(weights, tensors, {"format": "pt", **metadata})
        settings.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return paths[0].stat().st_size
