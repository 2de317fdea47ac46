"""Files of predictors: what is read back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hnloader
from hnloader.errors import CorruptFileError, HypernetworkError, OtherModelError, UnsupportedArchitectureError
from hnloader.prediction.predictor_file import KEY, load_predictor, save_predictor
from tests.support.errors import raises


def description(path: Path) -> dict[str, Any]:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()[KEY])
    return found


def changed(path: Path, folder: Path, described: object = None, **tensors: torch.Tensor | None) -> Path:
    """A copy with another description or other tensors."""
    kept = {**load_file(path), **{name: value for name, value in tensors.items() if value is not None}}
    kept = {name: value for name, value in kept.items() if tensors.get(name, value) is not None}
    target = folder / "changed.safetensors"
    save_file(kept, target, metadata={KEY: json.dumps(description(path) if described is None else described)})
    return target


def test_a_predictor_is_read_back(tiny_predictor: Path, tmp_path: Path) -> None:
    stored = load_predictor(tiny_predictor)
    assert stored.about.step == 6
    assert stored.about.resolution == 32
    save_predictor(tmp_path / "again.safetensors", stored.predictor, stored.about, stored.sample)
    again = load_predictor(tmp_path / "again.safetensors")
    assert again.about == stored.about
    for name, value in stored.predictor.state_dict().items():
        assert torch.equal(again.predictor.state_dict()[name], value)


def test_other_files_are_refused(styles: Path, tmp_path: Path) -> None:
    with raises(HypernetworkError, "none.safetensors"):
        load_predictor(tmp_path / "none.safetensors")
    with raises(OtherModelError, "oil.safetensors", "train-predictor"):
        load_predictor(styles / "oil.safetensors")
    with raises(OtherModelError, "ink.pt"):
        load_predictor(styles / "ink.pt")


def test_a_predictor_is_no_hypernetwork(tiny_predictor: Path) -> None:
    with raises(OtherModelError, "predictor", "hnloader predict"):
        hnloader.load(tiny_predictor)


def test_a_later_version_is_refused(tiny_predictor: Path, tmp_path: Path) -> None:
    described = description(tiny_predictor)
    with raises(UnsupportedArchitectureError, "version 99", "version 1"):
        load_predictor(changed(tiny_predictor, tmp_path, {**described, "version": 99}))


@pytest.mark.parametrize("key", ["scopes", "latent_channels", "design", "about"])
@pytest.mark.parametrize("value", [None, -1, "x", [1], {"a": 1}, 10**30])
def test_damaged_descriptions_are_refused(tiny_predictor: Path, tmp_path: Path, key: str, value: object) -> None:
    described = description(tiny_predictor)
    with raises(CorruptFileError, "changed.safetensors"):
        load_predictor(changed(tiny_predictor, tmp_path, {**described, key: value}))
    del described[key]
    with raises(CorruptFileError, "changed.safetensors"):
        load_predictor(changed(tiny_predictor, tmp_path, described))


def test_declared_sizes_are_compared_before_memory_is_allocated(tiny_predictor: Path, tmp_path: Path) -> None:
    described = description(tiny_predictor)
    described["scopes"] = ["9999999"]
    described["design"] |= {"layer_structure": [1, 16, 1], "hidden_size": 4096}
    with raises(CorruptFileError, "does not fit"):
        load_predictor(changed(tiny_predictor, tmp_path, described))


def test_damaged_tensors_are_refused(tiny_predictor: Path, tmp_path: Path) -> None:
    name = "head.bias"
    bias = load_file(tiny_predictor)[name]
    for value in (None, bias[:-1], bias.int(), bias * float("nan")):
        with raises(CorruptFileError, "changed.safetensors"):
            load_predictor(changed(tiny_predictor, tmp_path, **{name: value}))
    with raises(CorruptFileError, "model.probe"):
        load_predictor(changed(tiny_predictor, tmp_path, **{"model.probe": None}))
