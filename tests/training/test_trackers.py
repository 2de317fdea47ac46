"""Losses and previews go to TensorBoard and wandb; their failures do not stop the training."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import tracking

from hnloader.errors import MissingExtraError
from hnloader.training import prepare, read_config, train
from tests.support.trainings import raises

Settings = Callable[..., Any]


@pytest.fixture
def settings_of(tiny_model: Path, images: Path, tmp_path: Path) -> Settings:
    def make(*trackers: str, **changes: object) -> Any:
        given = {"model": str(tiny_model), "images": str(images), "output": str(tmp_path / "style.pt")}
        quick = {
            "steps": 4,
            "validate_every_n_steps": 2,
            "previews.every_n_steps": 4,
            "previews.count": 2,
            "previews.num_inference_steps": 1,
        }
        return read_config(None, {**given, **quick, "trackers": list(trackers), **changes})

    return make


class Wandb(ModuleType):
    """Fake of the package, as far as accelerate uses it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.settings: dict[str, Any] = {}
        self.ended = False
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.settings.update(values))
        self.Image = lambda array: ("image", array.shape)
        self.init = self._init
        self.fails_at = 0

    def _init(self, project: str, **options: object) -> Any:
        return SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("no way to api.wandb.ai")
        self.sent.append((step, values))

    def _finish(self) -> None:
        self.ended = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.WANDB])
    return package


def test_wandb_gets_settings_losses_and_previews(settings_of: Settings, wandb: Wandb) -> None:
    result = train(settings_of("wandb"))
    assert wandb.ended
    assert wandb.settings["steps"] == 4
    assert wandb.settings["data.random_flip"] is True
    figures = {step: values for step, values in wandb.sent if "loss" in values}
    assert list(figures) == [1, 2, 3, 4]
    assert figures[4]["validation_loss"] == result.history[-1]["validation_loss"]
    assert "validation_loss" not in figures[3]
    assert {step: values["previews"] for step, values in wandb.sent if "previews" in values} == {
        1: [("image", (32, 32, 3))] * 2,
        4: [("image", (32, 32, 3))] * 2,
    }


def test_training_continues_if_a_tracker_fails(settings_of: Settings, wandb: Wandb) -> None:
    wandb.fails_at = 2
    messages: list[str] = []
    result = prepare(settings_of("wandb")).run(lambda event: messages.append(event.message))
    assert result.step == 4
    (found,) = (message for message in messages if "Trackers" in message)
    assert "no way to api.wandb.ai" in found


def test_tensorboard_gets_event_files(settings_of: Settings, tmp_path: Path) -> None:
    train(settings_of("tensorboard"))
    (file,) = (tmp_path / "style.training" / "logs").glob("events.out.tfevents.*")
    written = file.read_bytes()
    for tag in (b"loss", b"mean_loss", b"validation_loss", b"learning_rate", b"previews"):
        assert tag in written


def test_a_missing_tracker_is_reported_first(settings_of: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    config = dataclasses.replace(settings_of("tensorboard"), model="nowhere", images="nowhere")
    with raises(MissingExtraError, "'trackers'", "pip install tensorboard"):
        train(config)
