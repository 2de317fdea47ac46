"""Losses and previews go to TensorBoard and wandb, and what happens to these does not happen to the training."""

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

Settings = Callable[..., Any]


@pytest.fixture
def settings_of(tiny_model: Path, images: Path, tmp_path: Path) -> Settings:
    def make(*trackers: str, **changes: object) -> Any:
        given = {"model": str(tiny_model), "images": str(images), "output": str(tmp_path / "style.pt")}
        quick = {"steps": 4, "measure_every": 2, "previews.every": 4, "previews.count": 2, "previews.steps": 1}
        return read_config(None, {**given, **quick, "trackers": list(trackers), **changes})

    return make


class Wandb(ModuleType):
    """In the place of the package, as far as accelerate asks it."""

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


def test_wandb_gets_the_settings_the_losses_and_the_previews(settings_of: Settings, wandb: Wandb) -> None:
    result = train(settings_of("wandb"))
    assert wandb.ended
    assert wandb.settings["steps"] == 4
    assert wandb.settings["data.flip"] is True
    figures = {step: values for step, values in wandb.sent if "loss" in values}
    assert list(figures) == [1, 2, 3, 4]
    assert figures[4]["held_out"] == result.history[-1]["held_out"]
    assert "held_out" not in figures[3]
    assert {step: values["previews"] for step, values in wandb.sent if "previews" in values} == {
        1: [("image", (32, 32, 3))] * 2,
        4: [("image", (32, 32, 3))] * 2,
    }


def test_a_tracker_that_fails_is_told_once_and_the_training_goes_on(settings_of: Settings, wandb: Wandb) -> None:
    wandb.fails_at = 2
    messages: list[str] = []
    result = prepare(settings_of("wandb")).run(lambda event: messages.append(event.message))
    assert result.step == 4
    (said,) = (message for message in messages if "trackers" in message)
    assert "no way to api.wandb.ai. The training goes on." in said


def test_tensorboard_gets_files_that_it_reads(settings_of: Settings, tmp_path: Path) -> None:
    train(settings_of("tensorboard"))
    (file,) = (tmp_path / "style.training" / "logs").glob("events.out.tfevents.*")
    written = file.read_bytes()
    for tag in (b"loss", b"mean_loss", b"held_out", b"rate", b"previews"):
        assert tag in written


def test_one_that_is_not_installed_is_named_before_anything_is_read(
    settings_of: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    config = dataclasses.replace(settings_of("tensorboard"), model="nowhere", images="nowhere")
    with pytest.raises(MissingExtraError, match="trackers: tensorboard is not installed: pip install tensorboard"):
        train(config)
