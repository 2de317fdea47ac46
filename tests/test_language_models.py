"""Load language models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from hnloader.errors import MissingExtraError, ModelError
from hnloader.language_models import is_language_model, load_language_model
from tests.support.small_language_models import save_language_model
from tests.support.trainings import raises


def test_a_folder(tmp_path: Path, tiny_model: Path) -> None:
    folder = save_language_model(tmp_path / "llm")
    found = load_language_model(folder, device="cpu", dtype="bfloat16")
    assert (found.name, found.positions, found.device.type, found.hash) == ("llm", 128, "cpu", None)
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.bfloat16}
    assert not found.model.training
    assert is_language_model(folder)
    assert not is_language_model(tiny_model)
    assert not is_language_model(tiny_model / "unet")
    assert not is_language_model(tmp_path)
    assert not is_language_model("owner/name")


@pytest.mark.parametrize(("family", "positions"), [("gpt2", 128), ("bloom", None), ("mpt", 128), ("opt", 128)])
def test_positions(family: str, positions: int | None, tmp_path: Path) -> None:
    assert load_language_model(save_language_model(tmp_path, family), device="cpu").positions == positions


def test_other_sources_are_refused(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(ModelError, "nowhere"):
        load_language_model(tmp_path / "nowhere")
    with raises(ModelError, "config.json"):
        load_language_model(tiny_model)
    (tmp_path / "a.bin").write_bytes(b"")
    with raises(ModelError, ".bin", ".gguf"):
        load_language_model(tmp_path / "a.bin")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with raises(MissingExtraError, "pip install gguf"):
        load_language_model(tmp_path / "a.gguf")


def test_models_without_projections_are_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    folder = save_language_model(tmp_path)
    MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1)).save_pretrained(folder)
    with raises(ModelError, "MambaForCausalLM"):
        load_language_model(folder)
