"""The settings: defaults, presets and contradictions."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnloader.errors import ConfigError
from hnloader.training import read_config
from hnloader.training.config import template
from tests.support.trainings import raises


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("preset", ["style", "subject"])
def test_the_template_explains_every_setting(preset: str, tmp_path: Path) -> None:
    text = template(preset)
    assert read_config(written(tmp_path / "config.yaml", text)) == read_config(preset=preset)
    keys = [line for line in text.splitlines() if ":" in line and not line.lstrip().startswith("#")]
    assert len(keys) > 50
    for number, line in enumerate(text.splitlines()):
        if line in keys:
            assert text.splitlines()[number - 1].lstrip().startswith("#"), line


def test_overrides_win_and_keep_other_nested_settings(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", "steps: 10\ndata:\n  repeats: 3")
    config = read_config(path, {"steps": 20, "data.resolution": 256}, preset="subject")
    assert (config.steps, config.data.repeats, config.data.resolution, config.data.random_flip) == (20, 3, 256, False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["'model'", "missing"]),
        ({"model": "a"}, ["'images'", "missing"]),
        ({"model": "a", "images": "b"}, ["'output'", "missing"]),
        ({"model": "a", "images": "b", "output": "c.ckpt"}, [".pt", ".safetensors", "'c.ckpt'"]),
        ({"hypernetwork.layer_structure": [1, 2]}, ["'hypernetwork.layer_structure'", "[1.0, 2.0]"]),
        ({"hypernetwork.activation": "relux"}, ["'hypernetwork.activation'", "'relux'", "leakyrelu"]),
        ({"learning_rate": "fast"}, ["'learning_rate'", "'fast'"]),
        ({"learning_rate": "20"}, ["below 10", "got 20"]),
        ({"learning_rate": "-1e-3"}, ["above 0", "got -0.001"]),
        ({"learning_rate": "1e-3:50, 1e-4:20, 1e-5"}, ["must rise", "got 20"]),
        ({"learning_rate": "5e-5:1000, 1e-5:100"}, ["must rise", "got 100"]),
        ({"learning_rate": "5e-5:1000, 1e-5:1000"}, ["must rise", "got 1000"]),
        ({"learning_rate": "5e-5:9000, 1e-5:100, 1e-6"}, ["must rise", "got 100"]),
        ({"learning_rate": "5e-5:9000, 20"}, ["below 10", "got 20"]),
        ({"learning_rate": "5e-5:0, 1e-5"}, ["must rise", "got 0"]),
        ({"learning_rate": "5e-5:-3"}, ["must rise", "got -3"]),
        ({"learning_rate": "5e-5:-1, 1e-5:100"}, ["last piece"]),
        ({"learning_rate": "1e-3, 1e-4"}, ["last piece"]),
        ({"prior.weight": 1.0, "prior.prompts": []}, ["'prior.prompts'", "empty"]),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], words: list[str]) -> None:
    complete = {"model": "a", "images": "b", "output": "c.pt"} if any("." in k or "_" in k for k in settings) else {}
    with raises(ConfigError, *words):
        read_config(None, {**complete, **settings}).check()


def test_an_unknown_preset_is_refused() -> None:
    with raises(ConfigError, "'portrait'", "'subject'"):
        read_config(preset="portrait")
