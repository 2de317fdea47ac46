"""The written file: names, metadata, hashes; settings that are refused; nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import hnloader
from hnloader.conversion.bulk import convert_many
from hnloader.conversion.lora import to_lora
from hnloader.conversion.lora.base import open_base
from hnloader.conversion.lora.files import ToLora
from hnloader.conversion.lora.result import LayerChange
from hnloader.conversion.lora.writing import describe
from hnloader.conversion.planning import plan
from hnloader.errors import ExistingFileError
from hnloader.network import Architecture
from tests.support.lora_models import PROMPTS, QUICK, Pipelines, make_affine, make_random, read
from tests.support.small_models import WIDTHS, make_unet


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pipelines: Pipelines) -> Any:
    folder = tmp_path_factory.mktemp("made")
    hnloader.save(make_affine(WIDTHS["sd1"]), folder / "style.pt")
    result = to_lora((folder / "style.pt", 0.5), pipelines("sd1"), folder / "style-lora.safetensors", rank=3, **QUICK)
    return result, *read(result.path)


def test_names_are_kohyas(made: Any) -> None:
    _, tensors, _ = made
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert tensors[f"{layer}.lora_down.weight"].shape == (3, 48)
    assert tensors[f"{layer}.lora_up.weight"].shape == (20, 3)
    assert tensors[f"{layer}.alpha"].shape == ()
    assert {name.partition(".")[2] for name in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(name.startswith("lora_unet_") for name in tensors)


def test_metadata_state_source_error_and_origin_of_contexts(made: Any) -> None:
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
def test_families_in_metadata(family: str, version: str, is_sd2: str, architecture: str) -> None:
    site = open_base(make_unet()).sites[0]
    changes = [LayerChange(site, "to_k", down=torch.ones(rank, 8), up=torch.ones(8, rank)) for rank in (2, 5)]
    metadata = describe(changes, "lora", family, "base", "title", "diffusers")
    assert metadata["ss_base_model_version"] == version
    assert metadata["ss_v2"] == is_sd2
    assert metadata["modelspec.architecture"] == architecture
    assert metadata["ss_network_dim"] == "Dynamic"
    assert describe(changes, "lycoris", family, "base", "title", "diffusers")["ss_network_module"] == "lycoris.kohya"


def test_the_package_offers_it() -> None:
    assert hnloader.to_lora is to_lora
    assert isinstance(hnloader.LoraExport, type)


def refused(target: Path, match: str, **options: Any) -> None:
    with pytest.raises(hnloader.HypernetworkError, match=match):
        to_lora(make_affine(WIDTHS["sd1"]), options.pop("base", None) or make_unet(), target, **options)


def test_impossible_settings_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: Any) -> None:
    from hnloader.conversion.lora import converting

    monkeypatch.setattr(converting, "sample", lambda *_: pytest.fail("the model was run"))
    target = tmp_path / "x.safetensors"
    refused(target, r"Rank 21 is over the width of down_blocks.0.attentions.0\S+, 20", rank=21)
    refused(target, "whole number from 1", rank=0)
    refused(target, "whole number from 1", rank="big")
    refused(target, "above 0 and below 1", fidelity=1)
    refused(target, "3 different prompts are too few", prompts=["a", "b", "c", "c"])
    refused(target, "5 images", images=4)
    refused(target, "cannot be read as a list", prompts=tmp_path / "missing.txt")
    refused(tmp_path / "x.pt", "does not end in .safetensors")
    refused(tmp_path / "missing" / "x.safetensors", "no existing folder")
    applied = hnloader.Application(make_affine((48,)), end=0.5)
    with pytest.raises(hnloader.HypernetworkError, match="whole sampling"):
        to_lora(applied, make_unet(), target)
    assert not list(tmp_path.iterdir())


def test_values_over_the_range_of_half_precision_are_refused(tmp_path: Path) -> None:
    huge = make_affine(WIDTHS["sd1"])
    for parameter in huge.parameters():
        parameter.mul_(1e4)
    with pytest.raises(hnloader.HypernetworkError, match="does not fit into float16"):
        to_lora(huge, make_unet(), tmp_path / "x.safetensors", kind="lycoris", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    from hnloader.conversion.lora import writing

    target = tmp_path / "x.safetensors"
    target.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_tensors", full)
    with pytest.raises(hnloader.HypernetworkError, match="No space left"):
        to_lora(make_affine(WIDTHS["sd1"]), make_unet(), target, kind="lycoris")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_what_exists_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    model, source = make_unet(), make_affine(WIDTHS["sd1"])
    target, grid = tmp_path / "x.safetensors", tmp_path / "x.png"
    for there in (target, grid):
        there.write_bytes(b"before")
        with pytest.raises(ExistingFileError, match="exists"):
            to_lora(source, model, target, kind="lycoris", compare_to=grid, overwrite=False)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
        there.unlink()
    target.write_bytes(b"before")
    hypernetwork = tmp_path / "ink.safetensors"
    hnloader.save(source, hypernetwork)
    converter = ToLora(open_base(model), kind="lycoris")
    planned = plan([hypernetwork], suffix="-lycoris.safetensors", out=target)
    for existing in ("skip", "rename"):
        (result,) = convert_many(planned, converter, on_existing=existing)  # type: ignore[arg-type]
        assert result.outcome == ("skipped" if existing == "skip" else "converted"), result.reason
        assert target.read_bytes() == b"before"
    assert (tmp_path / "x-2.safetensors").exists()


def test_a_hypernetwork_is_not_replaced_by_its_lora(tmp_path: Path) -> None:
    made = tmp_path / "ink.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), made)
    before = made.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(made)
    for name in ("ink.safetensors", "link.safetensors"):
        with pytest.raises(hnloader.HypernetworkError, match="one of the hypernetworks"):
            to_lora([made], make_unet(), tmp_path / name, kind="lycoris")
    assert made.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
def test_a_lora_of_a_private_file_is_private(tmp_path: Path) -> None:
    made = tmp_path / "ink.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), made)
    made.chmod(0o600)
    done = to_lora([made], make_unet(), tmp_path / "x.safetensors", kind="lycoris")
    assert done.path.stat().st_mode & 0o777 == 0o600


def test_images_side_by_side(tmp_path: Path, pipelines: Pipelines) -> None:
    pipeline, told = pipelines("sd1"), []
    made = to_lora(
        make_affine(WIDTHS["sd1"]),
        pipeline,
        tmp_path / "x.safetensors",
        kind="lycoris",
        prompts=PROMPTS,
        compare_to=tmp_path / "grid.png",
        progress=lambda done, total, text: told.append((done, total, text)),
    )
    assert made.images is not None
    assert made.images["without"] > 1 > 0.01 > made.images["converted"]
    assert json.loads(read(made.path)[1]["hnloader.images"])["without"] == round(made.images["without"], 2)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 3 * 192
    assert {text for _, _, text in told} == {"Fitting layers", "Making images"}


def test_images_need_a_whole_model(tmp_path: Path) -> None:
    with pytest.raises(hnloader.HypernetworkError, match="UNet alone"):
        to_lora(
            make_affine(WIDTHS["sd1"]),
            make_unet(),
            tmp_path / "x.safetensors",
            kind="lycoris",
            compare_to=tmp_path / "grid.png",
        )
    assert not list(tmp_path.iterdir())


def test_larger_than_full_differences_is_said(tmp_path: Path, pipelines: Pipelines) -> None:
    hypernetwork = make_random(WIDTHS["sd1"], Architecture((1, 1)), bias=False)
    made = to_lora(hypernetwork, pipelines("sd1"), tmp_path / "x.safetensors", rank="full", **QUICK)
    assert any("LyCORIS would be smaller" in warning for warning in made.warnings)


# -- many files


def test_a_file_that_was_made_so_is_up_to_date(tmp_path: Path) -> None:
    make_unet().save_pretrained(tmp_path / "model")
    base = open_base(tmp_path / "model")
    source, target = tmp_path / "style.pt", tmp_path / "style-lycoris.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), source)
    converter = ToLora(base, kind="lycoris", strength=0.8)
    converter.convert(source, target)
    assert converter.made(source, target)
    assert converter.check(source, target) == {"verified": ["tensors", "source", "settings"]}
    assert not ToLora(base, kind="lycoris", strength=0.7).made(source, target)
    assert not ToLora(base, kind="lora", strength=0.8).made(source, target)
    assert not ToLora(base, kind="lycoris", strength=0.8, dtype=torch.float16).made(source, target)
    other = make_unet()
    for parameter in other.parameters():
        parameter.mul_(0.5)
    other.save_pretrained(tmp_path / "other" / "model")
    assert not ToLora(open_base(tmp_path / "other" / "model"), kind="lycoris", strength=0.8).made(source, target)
    hnloader.save(make_affine(WIDTHS["sd1"], seed=5), source)
    assert not converter.made(source, target)


def test_a_damaged_file_is_not_up_to_date(tmp_path: Path) -> None:
    base = open_base(make_unet())
    source, target = tmp_path / "style.pt", tmp_path / "style-lycoris.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), source)
    converter = ToLora(base, kind="lycoris")
    converter.convert(source, target)
    data = bytearray(target.read_bytes())
    data[-5] ^= 1
    target.write_bytes(data)
    with pytest.raises(hnloader.HypernetworkError, match="damaged"):
        converter.check(source, target)
    target.write_bytes(data[:-7])
    assert not converter.made(source, target)


def test_looking_tells_a_wrong_family_from_the_header(tmp_path: Path) -> None:
    source = tmp_path / "style.pt"
    hnloader.save(make_affine((40, 64)), source)
    with pytest.raises(hnloader.NoMatchingSitesError):
        ToLora(open_base(make_unet("sd1"))).look(source)
    ToLora(open_base(make_unet("sd2"))).look(source)
