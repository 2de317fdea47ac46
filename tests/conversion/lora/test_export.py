"""Arguments of an export, and existing and private files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import hnloader
from hnloader import ExistingFileError, HypernetworkError, LoraOptions, export_lora
from hnloader.conversion.lora import export, lora_file
from hnloader.network import Architecture
from tests.support.lora_models import LYCORIS, QUICK, Pipelines, make_affine, make_random
from tests.support.small_models import WIDTHS, make_unet


@pytest.mark.parametrize(
    ("name", "options", "fact"),
    [
        ("x.safetensors", {"rank": 21}, r"21 .*down_blocks.0.attentions.0\S+, 20"),
        ("x.safetensors", {"prompts": ["a", "b", "c", "c"]}, "3"),
        ("x.safetensors", {"images": 4}, "4"),
        ("x.safetensors", {"prompts": "missing.txt"}, "missing.txt"),
        ("x.pt", {}, "x.pt"),
        ("missing/x.safetensors", {}, "missing"),
    ],
)
def test_impossible_settings_are_refused_before_the_model_runs(
    name: str, options: dict[str, Any], fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "sample", lambda *_: pytest.fail("the model was run"))
    with pytest.raises(HypernetworkError, match=fact):
        export_lora(make_affine(WIDTHS["sd1"]), make_unet(), tmp_path / name, LoraOptions(**options))
    assert not list(tmp_path.iterdir())


def test_part_of_the_sampling_is_refused(tmp_path: Path) -> None:
    applied = hnloader.Application(make_affine((48,)), end=0.5)
    with pytest.raises(HypernetworkError, match="end"):
        export_lora(applied, make_unet(), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_values_over_the_range_of_half_precision_are_refused(tmp_path: Path) -> None:
    huge = make_affine(WIDTHS["sd1"])
    for parameter in huge.parameters():
        parameter.mul_(1e4)
    with pytest.raises(HypernetworkError, match="float16"):
        export_lora(huge, make_unet(), tmp_path / "x.safetensors", LoraOptions(kind="lycoris", dtype=torch.float16))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lora_file, "write_tensors", full)
    with pytest.raises(HypernetworkError, match="No space left"):
        export_lora(make_affine(WIDTHS["sd1"]), make_unet(), target, LYCORIS)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_existing_files_stay_without_overwrite(tmp_path: Path) -> None:
    target, grid = tmp_path / "x.safetensors", tmp_path / "x.png"
    for there in (target, grid):
        there.write_bytes(b"before")
        with pytest.raises(ExistingFileError, match=there.name):
            export_lora(make_affine(WIDTHS["sd1"]), make_unet(), target, LYCORIS, grid=grid, overwrite=False)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
        there.unlink()


def test_a_hypernetwork_is_not_replaced_by_its_lora(tmp_path: Path) -> None:
    made = tmp_path / "ink.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), made)
    before = made.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(made)
    for name in ("ink.safetensors", "link.safetensors"):
        with pytest.raises(HypernetworkError, match=name):
            export_lora([made], make_unet(), tmp_path / name, LYCORIS)
    assert made.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
def test_a_lora_of_a_private_file_is_private(tmp_path: Path) -> None:
    made = tmp_path / "ink.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), made)
    made.chmod(0o600)
    done = export_lora([made], make_unet(), tmp_path / "x.safetensors", LYCORIS)
    assert done.path.stat().st_mode & 0o777 == 0o600


def test_a_lora_larger_than_full_differences_warns(tmp_path: Path, pipelines: Pipelines) -> None:
    hypernetwork = make_random(WIDTHS["sd1"], Architecture((1, 1)), bias=False)
    made = export_lora(hypernetwork, pipelines("sd1"), tmp_path / "x.safetensors", LoraOptions(rank="full", **QUICK))
    assert any("LyCORIS" in warning for warning in made.warnings)
