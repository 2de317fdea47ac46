"""LoRA files: the names of their tensors, and the metadata that other programs and hnloader read."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hnloader.conversion.lora.names import NameStyle, lora_name
from hnloader.conversion.lora.result import ALPHA, Kind, LayerChange
from hnloader.families import family_named
from hnloader.formats.outgoing import tensor_bytes
from hnloader.formats.safetensors import write_tensors

_IMPLEMENTATIONS = {"diffusers": "diffusers", "original": "https://github.com/Stability-AI/generative-models"}


def name_style(family: str | None) -> NameStyle:
    """Return the layer names that every program reads for this family."""
    known = family_named(family)
    return known.lora_names if known else "diffusers"


def named_tensors(changes: Sequence[LayerChange], style: NameStyle, layers: int) -> dict[str, Tensor]:
    """The tensors of a file under their names; on the CPU, contiguous."""
    return {
        f"{lora_name(change.name, style, layers)}.{part}": tensor.detach().cpu().contiguous()
        for change in changes
        for part, tensor in change.tensors().items()
    }


def describe(
    changes: Sequence[LayerChange], kind: Kind, family: str | None, base: str, title: str, style: NameStyle
) -> dict[str, str]:
    """The metadata that kohya's tools, the webuis and model managers read."""
    known = family_named(family)
    version, architecture, resolution = "", "unknown", ""
    if known is not None:
        version, architecture = known.lora_base, known.modelspec_lora or known.modelspec
        resolution = f"{known.resolution}x{known.resolution}"
    ranks = {change.rank for change in changes}
    rank = str(next(iter(ranks))) if len(ranks) == 1 and kind == "lora" else "Dynamic"  # kohya's word for mixed ranks
    metadata = {
        "ss_network_module": "networks.lora" if kind == "lora" else "lycoris.kohya",
        "ss_network_dim": rank,
        "ss_network_alpha": f"{ALPHA:g}",
        "ss_network_args": json.dumps({} if kind == "lora" else {"algo": "full"}),
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_base_model_version": version,
        "ss_sd_model_name": base,
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": _IMPLEMENTATIONS[style],
        "modelspec.title": title,
        "modelspec.resolution": resolution,
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
    }
    return {key: value for key, value in metadata.items() if value}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Write a LoRA file to exactly this path. Returns its size in bytes; raises OSError where it cannot be written."""
    value = tensors_sha256(tensors)
    # kohya's hash of a network and ModelSpec's are of the tensor data, so that metadata can be edited.
    hashes = {"sshs_model_hash": value, "modelspec.hash_sha256": f"0x{value}"}
    write_tensors(path, dict(tensors), {"format": "pt", **metadata, **hashes})
    return path.stat().st_size


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of a file's tensor data. All tensors are of one dtype, so they lie in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensor_bytes(tensors[name].contiguous()))
    return digest.hexdigest()


def overflowing(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds an infinite value or NaN."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
