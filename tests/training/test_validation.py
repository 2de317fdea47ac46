"""The validation loss, and the remark if it does not improve."""

from __future__ import annotations

import html
from typing import Any

import pytest

import hnloader
from hnloader.errors import DivergedError
from hnloader.training import prepare
from hnloader.training.run_folder import run_folder
from hnloader.training.state import states
from tests.support.trainings import Run


def test_early_stopping(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(steps=50, validate_every_n_steps=1, early_stopping_patience=2))
    measured = iter([6.0, 3.0, 4.0, 2.0, 1.0, 1.0, 5.0, 0.5])
    monkeypatch.setattr(training.validator, "loss", lambda: next(measured))
    result = training.run()
    assert (result.reason, result.step) == ("early_stopped", 6)
    loss, step, path = result.best
    assert (loss, step) == (1.0, 4)
    assert hnloader.load(path).metadata["step"] == 4
    assert hnloader.load(result.output).metadata["step"] == 6
    assert states(run_folder(result.output))[-1].name == "state-00000006.safetensors"


def messages_with(training: Any, monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[str]:
    """Run with these losses at fixed noise, that of step 0 first."""
    given = iter(losses)
    monkeypatch.setattr(training.validator, "loss", lambda: next(given))
    messages: list[str] = []
    result = training.run(lambda event: event.message and messages.append(event.message))
    assert result.initial_loss == losses[0]
    return [message for message in messages if "lower learning_rate" in message.lower()]


@pytest.mark.parametrize(
    ("losses", "facts"),
    [
        ([1.0, 1.2, 1.1, 1.3], ["validation loss did not improve", "1 before", "1.1 at best, at step 8"]),
        ([1.0, 1.0, 1.0, 1.0], ["1 at best, at step 4"]),
        ([1.0, 0.8, 1.1, 1.3], ["0.8 at step 4", "1.3 now", "best.pt"]),
    ],
)
def test_a_training_that_does_not_improve_is_reported(
    losses: list[float], facts: list[str], settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare(settings_of())
    found = messages_with(training, monkeypatch, losses)
    assert all(fact in found[-1] for fact in facts)
    assert "learning_rate (now 1e-3)" in found[-1]
    assert found[-1] in html.unescape((run_folder(training.output) / "report.html").read_text())


def test_a_loss_that_is_not_finite_is_reported(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(validate_every_n_steps=12))
    assert "not finite" in messages_with(training, monkeypatch, [1.0, float("nan")])[-1]


@pytest.mark.parametrize("losses", [[1.0, 0.9, 3.1, 3.5], [1.0, float("inf"), float("nan")]])
def test_a_diverging_training_stops_with_advice(
    losses: list[float], settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare(settings_of())
    with pytest.raises(DivergedError, match="learning_rate") as caught:
        messages_with(training, monkeypatch, losses)
    assert training.state.step == 4 * (len(losses) - 1)
    assert ("best.pt" in str(caught.value)) == (0.9 in losses)
    # The state of that step is not saved.
    assert states(run_folder(training.output))[-1].name != f"state-{training.state.step:08d}.safetensors"


def test_one_high_loss_stops_nothing(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert messages_with(prepare(settings_of()), monkeypatch, [1.0, 5.0, 2.0, 0.9]) == []


def test_a_training_that_improves_is_not_reported(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert messages_with(prepare(settings_of()), monkeypatch, [1.0, 1.2, 1.1, 0.9]) == []


def test_without_validation_images_training_images_are_measured(
    settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = messages_with(prepare(settings_of("a.pt", data__validation_split=0)), monkeypatch, [1.0, 1.5])
    assert "loss on the training images" in found
    assert messages_with(prepare(settings_of("b.pt", data__validation_split=0)), monkeypatch, [1.0, 0.5]) == []


def test_the_initial_loss_survives_an_interruption(settings_of: Run) -> None:
    config = settings_of()
    training = prepare(config)
    expected = training.validator.loss()
    training.run(lambda event: training.stop())
    resumed = prepare(config, resume=True)
    assert resumed.state.initial_loss == expected
    result = resumed.run()
    assert result.initial_loss == expected
    assert result.history[0] == {
        "step": 0.0,
        "learning_rate": result.history[0]["learning_rate"],
        "validation_loss": expected,
    }
    assert [entry["step"] for entry in result.history] == [0, 4, 8, 12]
    assert prepare(settings_of("none.pt", validate_every_n_steps=0)).run().initial_loss is None
