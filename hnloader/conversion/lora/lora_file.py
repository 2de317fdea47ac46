"""LoRA files: names of tensors, and the metadata that other programs and hnloader read."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hnloader.conversion.lora.export_result import LayerChange
from hnloader.conversion.lora.layer_names import NameStyle, lora_name
from hnloader.conversion.lora.lora_options import Kind
from hnloader.errors import HypernetworkError
from hnloader.families import family_named
from hnloader.formats.outgoing import tensor_bytes
from hnloader.formats.safetensors import write_tensors

__all__ = ["kohya_metadata", "load", "name_style", "named_tensors", "overflowing", "read", "write"]

_IMPLEMENTATIONS = {"diffusers": "diffusers", "original": "https://github.com/Stability-AI/generative-models"}
_HASH = "sshs_model_hash"


def name_style(family: str | None) -> NameStyle:
    """Return the layer names that every program reads for this family."""
    known = family_named(family)
    return known.lora_names if known else "diffusers"


def named_tensors(changes: Sequence[LayerChange], style: NameStyle, layers: int) -> dict[str, Tensor]:
    """Return the tensors of a file by name, contiguous and on the CPU."""
    return {
        f"{lora_name(change.name, style, layers)}.{part}": tensor.detach().cpu().contiguous()
        for change in changes
        for part, tensor in change.tensors().items()
    }


def kohya_metadata(
    ranks: Collection[int | None],
    alpha: float,
    kind: Kind,
    family: str | None,
    base: str,
    title: str,
    style: NameStyle,
) -> dict[str, str]:
    """Return the metadata that kohya's tools, the webuis and model managers read; `ranks` has no duplicates."""
    known = family_named(family)
    version, architecture, resolution = "", "unknown", ""
    if known is not None:
        version, architecture = known.lora_base, known.modelspec_lora or known.modelspec
        resolution = f"{known.resolution}x{known.resolution}"
    rank = str(next(iter(ranks))) if len(ranks) == 1 and kind == "lora" else "Dynamic"  # kohya's word for mixed ranks
    metadata = {
        "ss_network_module": "networks.lora" if kind == "lora" else "lycoris.kohya",
        "ss_network_dim": rank,
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": json.dumps({} if kind == "lora" else {"algo": "full"}),
        "ss_v2": "True" if version.startswith("sd_v2") else "False",
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
    """Write a LoRA file to exactly this path and return its size in bytes. Raises OSError."""
    value = _sha256_of_data(tensors)
    # kohya and ModelSpec hash the tensor data, so that metadata can be edited.
    hashes = {_HASH: value, "modelspec.hash_sha256": f"0x{value}"}
    write_tensors(path, dict(tensors), {"format": "pt", **metadata, **hashes})
    return path.stat().st_size


def read(path: Path) -> dict[str, str]:
    """Return the metadata of a whole file.

    Raises:
        HypernetworkError: The file cannot be read, or its tensors differ from those that were written.
    """
    try:
        tensors, metadata = load(path)
    except (OSError, SafetensorError) as error:
        raise HypernetworkError(f"{path}: the safetensors file is damaged ({error}). Export it again.") from error
    if metadata.get(_HASH) != _sha256_of_data(tensors):
        raise HypernetworkError(f"{path}: the tensors differ from those that were written. Export it again.")
    return metadata


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of any safetensors file. Raises OSError and SafetensorError."""
    with safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, opened.metadata() or {}


def overflowing(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor with an infinite value or NaN, or None."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def _sha256_of_data(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the tensor data. Tensors of one dtype are in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensor_bytes(tensors[name].contiguous()))
    return digest.hexdigest()
