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
