"""Search for a learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hnloader.cli.app import app
from hnloader.errors import ConfigError
from hnloader.training import prepare, rate_search, train
from hnloader.training.rate_search import FACTORS, find_learning_rate
from hnloader.training.trainer import Trainer
from tests.support.trainings import Run, raises


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_search, "LEAST_STEPS", 3)
    monkeypatch.setattr(rate_search, "MOST_STEPS", 3)


@pytest.mark.parametrize("method", ["hypernetwork", "embedding", "lora"])
def test_each_rate_starts_from_the_same_weights(method: str, settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, step = [], Trainer.train_step

    def watched(self: Trainer, number: int) -> float:
        if number == 1:
            begun.append([parameter.detach().clone() for parameter in self.adapter.parameters])
        return step(self, number)

    monkeypatch.setattr(Trainer, "train_step", watched)
    config = settings_of("style.safetensors", method=method)
    found = find_learning_rate(config)
    assert [each.rate for each in found.tried] == pytest.approx([1e-3 * factor for factor in FACTORS])
    assert all(torch.equal(a, b) for each in begun for a, b in zip(each, begun[0], strict=True))
    assert found.steps == 3
    assert not Path(config.output).exists()
    page = found.path.read_text()
    assert "svg" in page
    assert found.conclusion in page
    losses = {each.loss for each in found.tried}
    assert len(losses) > 1
    again = find_learning_rate(config)
    assert [each.loss for each in again.tried] == [each.loss for each in found.tried]


def test_the_loss_is_that_of_a_training_run_with_this_rate(settings_of: Run) -> None:
    found = find_learning_rate(settings_of())
    tried = found.tried[4]
    config = settings_of(
        "other/style.pt", learning_rate=tried.rate, lr_scheduler="constant", lr_warmup_steps=0, steps=3, ema_decay=0.0
    )
    training = prepare(config)
    training.run()
    assert training.validator.loss() == pytest.approx(tried.loss, rel=1e-6)


def test_a_diverging_rate_does_not_count(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.train_step

    def exploding(self: Trainer, number: int) -> float:
        if float(self.config.learning_rate) > 5e-3:
            monkeypatch.setattr(self.task, "loss", lambda index: self.adapter.parameters[0].sum() * float("nan"))
        else:
            monkeypatch.undo()
            monkeypatch.setattr(Trainer, "train_step", exploding)
        return step(self, number)

    monkeypatch.setattr(Trainer, "train_step", exploding)
    found = find_learning_rate(settings_of())
    assert [each.loss == float("inf") for each in found.tried] == [rate > 5 for rate in FACTORS]
    assert found.best is None or found.best.rate <= 5e-3


def test_an_earlier_training_run_is_unchanged(settings_of: Run) -> None:
    config = settings_of(steps=4)
    output = train(config).output
    before = {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}
    find_learning_rate(config)
    changed = {path for path, data in before.items() if path.read_bytes() != data}
    assert not {path for path in changed if path.suffix in (".pt", ".safetensors")}


@pytest.mark.parametrize("changes", [{"learning_rate": "1e-3:2, 1e-4"}, {"optimizer": "prodigy"}])
def test_settings_without_a_single_rate_are_refused(changes: dict[str, object], settings_of: Run) -> None:
    with raises(ConfigError, "--find-lr"):
        find_learning_rate(settings_of(**changes))


def test_the_command(settings_of: Run, tmp_path: Path) -> None:
    config = settings_of()
    given = ["--model", config.model, "--images", config.images, "--output", config.output]
    done = CliRunner().invoke(app, ["train", *given, "--find-lr", "--set", "learning_rate=1e-3"])
    assert done.exit_code == 0, done.output
    assert "loss after 3 steps" in done.stdout
    assert "learning-rates.html" in done.stdout
    assert "0.001" in done.stdout
