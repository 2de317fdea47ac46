"""The written file: names, metadata and hashes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

import hnloader
from hnloader.conversion.lora import LoraOptions, export_lora, open_base
from hnloader.conversion.lora.lora_file import kohya_metadata
from tests.support.lora_models import QUICK, Pipelines, make_affine, read
from tests.support.small_models import WIDTHS, make_unet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pipelines: Pipelines) -> Any:
    folder = tmp_path_factory.mktemp("made")
    hnloader.save(make_affine(WIDTHS["sd1"]), folder / "style.pt")
    result = export_lora(
        (folder / "style.pt", 0.5), pipelines("sd1"), folder / "style-lora.safetensors", LoraOptions(rank=3, **QUICK)
    )
    return result, *read(result.path)


def test_tensor_names_follow_kohya(made: Any) -> None:
    _, tensors, _ = made
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert tensors[f"{layer}.lora_down.weight"].shape == (3, 48)
    assert tensors[f"{layer}.lora_up.weight"].shape == (20, 3)
    assert tensors[f"{layer}.alpha"].shape == ()
    assert {name.partition(".")[2] for name in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(name.startswith("lora_unet_") for name in tensors)


def test_metadata_state_sources_errors_and_contexts(made: Any) -> None:
    result, _, metadata = made
    source = result.path.with_name("style.pt")
    assert json.loads(metadata["hnloader.sources"]) == [
        {"name": "style", "strength": 0.5, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    ]
    errors = json.loads(metadata["hnloader.errors"])
    blocks = {site.block for site in open_base(make_unet()).sites}
    assert errors.keys() == blocks | {"overall"}
    assert all(sides.keys() == {"k", "v"} for sides in errors.values())
    assert errors["overall"]["v"]["of_change"] == pytest.approx(result.errors.overall("v").of_change, rel=1e-3)
    assert metadata["hnloader.statistics"] == result.statistics
    assert metadata["hnloader.exact"] == "false"
    assert json.loads(metadata["hnloader.settings"])["rank"] == 3
    assert result.warnings and metadata["hnloader.warning"] == " ".join(result.warnings)


def test_metadata_of_kohya_and_modelspec(made: Any) -> None:
    result, _, metadata = made
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_network_dim"] == "3"
    assert metadata["modelspec.title"] == "style-lora"
    data = result.path.read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"


@pytest.mark.parametrize(
    ("family", "version", "is_sd2", "architecture"),
    [
        ("SD 1", "sd_v1", "False", "stable-diffusion-v1/lora"),
        ("SD 2", "sd_v2", "True", "stable-diffusion-v2-768-v/lora"),
        ("SDXL", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
    ],
)
def test_metadata_of_each_family(family: str, version: str, is_sd2: str, architecture: str) -> None:
    metadata = kohya_metadata({2, 5}, 1.0, "lora", family, "base", "title", "diffusers")
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == is_sd2
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["ss_network_dim"] == "Dynamic"
    full = kohya_metadata({2, 5}, 1.0, "lycoris", family, "base", "title", "diffusers")
    assert full["ss_network_module"] == "lycoris.kohya"
