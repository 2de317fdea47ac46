"""TrainingRuns with a model in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hnloader
from hnloader.errors import ConfigError, DivergedError
from hnloader.training import preparation, prepare, read_config, train
from tests.support.trainings import raises

Settings = Callable[..., Any]


@pytest.fixture
def settings_of(tiny_model: Path, images: Path, tmp_path: Path) -> Settings:
    def make(name: str, precision: str, **changes: object) -> Any:
        given = {"model": str(tiny_model), "images": str(images), "output": str(tmp_path / name / "style.pt")}
        quick = {
            "steps": 10,
            "save_every_n_steps": 4,
            "validate_every_n_steps": 5,
            "previews.every_n_steps": 0,
            "learning_rate": "1e-3",
        }
        return read_config(None, {**given, **quick, "precision": precision, **changes})

    return make


@pytest.fixture
def float16_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow float16, which is refused on a CPU because it is slow."""
    monkeypatch.setattr(preparation, "check_precision", lambda config, device: None)


def weights(path: Path) -> list[torch.Tensor]:
    return list(hnloader.load(path).state_dict().values())


@pytest.mark.parametrize("method", ["hypernetwork", "embedding"])
@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_only_the_model_is_in_half_precision(
    method: str, precision: str, dtype: torch.dtype, settings_of: Settings, float16_on_cpu: None
) -> None:
    training = prepare(settings_of("half", precision, method=method))
    assert {p.dtype for p in training.task.denoiser.unet.parameters()} == {dtype}
    assert {p.dtype for p in training.adapter.parameters} == {torch.float32}
    half = training.run()
    full = train(settings_of("full", "float32", method=method))
    assert half.best is not None
    assert full.best is not None
    assert half.best[0] == pytest.approx(full.best[0], rel=0.02)
    assert half.best[0] != full.best[0]


def test_float16_scales_losses_and_resumes_bit_for_bit(settings_of: Settings, float16_on_cpu: None) -> None:
    assert not prepare(settings_of("none", "bfloat16")).scaler.is_enabled()
    whole = prepare(settings_of("whole", "float16"))
    assert whole.scaler.get_scale() == 65536
    expected = whole.run()
    cut = prepare(settings_of("cut", "float16"))
    cut.run(lambda event: cut.stop() if event.step == 6 else None)
    again = prepare(settings_of("cut", "float16"), resume=True)
    assert again.scaler.state_dict() == cut.scaler.state_dict()
    assert again.scaler.state_dict()["_growth_tracker"] == 6
    assert all(torch.equal(a, b) for a, b in zip(weights(again.run().output), weights(expected.output), strict=True))


def test_gradients_too_large_for_float16_skip_a_step(settings_of: Settings, float16_on_cpu: None) -> None:
    training = prepare(settings_of("large", "float16", validate_every_n_steps=0))
    parameter = training.adapter.parameters[0]
    burst = parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = parameter.detach().clone()
    training.train_step(1)
    assert training.scaler.get_scale() == 32768
    assert torch.equal(parameter, before)
    burst.remove()
    training.train_step(2)
    assert not torch.equal(parameter, before)
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    for step in range(3, 18):
        training.train_step(step)
    with raises(DivergedError, "learning_rate"):
        training.train_step(18)


def test_float16_on_a_cpu_is_refused(settings_of: Settings) -> None:
    with raises(ConfigError, "'float16'", "cpu", "bfloat16"):
        train(settings_of("a", "float16"), device="cpu")
    with raises(ConfigError, "'flaot16'", "Did you mean 'float16'?"):
        settings_of("a", "flaot16")
