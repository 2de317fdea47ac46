"""Train a hypernetwork."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hnloader
from hnloader.errors import ConfigError, HypernetworkError
from hnloader.training import prepare, train
from tests.support.trainings import Run, raises


def test_a_hypernetwork_of_chosen_widths(settings_of: Run) -> None:
    result = train(settings_of(hypernetwork__widths=[24], steps=2))
    assert hnloader.load(result.output).widths == (24,)


@pytest.mark.parametrize("step", [None, -3, "many", True, 2.5, [1]])
def test_invalid_step_counts_are_zero(step: object, settings_of: Run) -> None:
    start = train(settings_of("start.pt", steps=1)).output
    written = torch.load(start, weights_only=True)
    torch.save({**written, "step": step}, start)
    assert prepare(settings_of("next.pt", start_from=str(start))).state.previous_steps == 0


@pytest.mark.parametrize("kind", ["Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"])
def test_strong_initializations_are_reported(kind: str, settings_of: Run) -> None:
    for norm in (False, True):
        changes = {"hypernetwork__initialization": kind, "hypernetwork__norm": norm, "steps": 1}
        training = prepare(settings_of(f"{kind}-{norm}.pt", **changes))
        found = [note for note in training.notes if "initialization" in note]
        assert len(found) == (kind != "Normal" and not norm)
        assert all(kind in note and "norm: true" in note for note in found)


def test_widths_that_the_model_lacks_are_refused(settings_of: Run, tmp_path: Path) -> None:
    from tests.support.tiny_model import save_hypernetwork

    wrong = save_hypernetwork(tmp_path / "wrong.pt", widths=(768,))
    with raises(ConfigError, "768"):
        prepare(settings_of(start_from=str(wrong)))
    with raises(ConfigError, "99"):
        prepare(settings_of(hypernetwork__widths=[99]))
    with raises(HypernetworkError, "none.pt"):
        prepare(settings_of(start_from=str(tmp_path / "none.pt")))


def test_a_file_with_scopes_is_trained_further(settings_of: Run, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    before = hnloader.Hypernetwork.new(("24:cross:0-3", "24:cross:4-"), hnloader.Architecture(), name="start")
    hnloader.save(before, start)
    result = train(settings_of("more.safetensors", steps=2, start_from=str(start), ema_decay=0.0))
    after = hnloader.load(result.output)
    assert after.scopes == before.scopes
    for name, tensor in before.state_dict().items():
        assert not torch.equal(after.state_dict()[name], tensor), name
    with raises(ConfigError, "output", ".safetensors"):
        prepare(settings_of("other.pt", start_from=str(start)))


def test_scopes_that_the_model_lacks_are_refused(settings_of: Run, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    hnloader.save(hnloader.Hypernetwork.new(("24", "16:900-"), hnloader.Architecture(), name="start"), start)
    with raises(ConfigError, "16:900-"):
        prepare(settings_of("more.safetensors", start_from=str(start)))


def test_a_predicted_file_is_trained_further(settings_of: Run, tmp_path: Path) -> None:
    """Its metadata name the predictor and the images."""
    start = tmp_path / "predicted.pt"
    made = hnloader.Hypernetwork.new((16, 24), hnloader.Architecture((1, 2, 1), "relu"), name="predicted")
    made.metadata |= {"step": 0, "predictor": "bundled.safetensors", "predictor_sha256": "0" * 64}
    made.metadata["images_sha256"] = ["1" * 64, "2" * 64]
    hnloader.save(made, start)
    result = train(settings_of("more.pt", steps=2, start_from=str(start)))
    found = hnloader.load(result.output)
    assert found.metadata["step"] == 2 and found.metadata["images_sha256"] == made.metadata["images_sha256"]
