"""Each optimizer trains, resumes bit for bit, and names a missing package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import optim

import hnloader
from hnloader.errors import MissingExtraError
from hnloader.training import prepare, read_config, train
from hnloader.training.optimizers import OPTIMIZERS, auto_learning_rate
from tests.support.trainings import raises

Settings = Callable[..., Any]


class Eightbit(optim.Adam):
    """Fake of bitsandbytes 0.50: the same arguments, bytes and numbers as state, and a nested mapping for what is
    quantized."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for values in self.state.values():
            values["quantized"] = values["exp_avg"].mul(1e4).clamp(0, 255).to(torch.uint8)
            values["steps"] = int(values["step"])

    def state_dict(self) -> dict[str, Any]:
        found = super().state_dict()
        wrapped = {
            index: {**values, "quant_state": {"quantized": values["quantized"], "bits": 8}}
            for index, values in found["state"].items()
        }
        for values in wrapped.values():
            del values["quantized"]
        return {**found, "state": wrapped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        plain = {}
        for index, values in state_dict["state"].items():
            inner = values["quant_state"]
            assert inner["bits"] == 8
            assert inner["quantized"].dtype == torch.uint8
            plain[index] = {**{key: each for key, each in values.items() if key != "quant_state"}, **inner}
        super().load_state_dict({**state_dict, "state": plain})


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("bitsandbytes.optim")
    package.AdamW8bit = Eightbit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package)


@pytest.fixture
def settings_of(tiny_model: Path, images: Path, tmp_path: Path) -> Settings:
    def make(name: str, optimizer: str, **changes: object) -> Any:
        given = {"model": str(tiny_model), "images": str(images), "output": str(tmp_path / name / "style.pt")}
        quick = {
            "steps": 12,
            "lr_warmup_steps": 2,
            "save_every_n_steps": 5,
            "validate_every_n_steps": 0,
            "previews.every_n_steps": 0,
        }
        return read_config(None, {**given, **quick, "optimizer": optimizer, **changes})

    return make


def weights(path: Path) -> list[torch.Tensor]:
    return list(hnloader.load(path).state_dict().values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_learns_and_resumes_bit_for_bit(name: str, settings_of: Settings, bitsandbytes: None) -> None:
    training = prepare(settings_of("whole", name))
    before = [parameter.detach().clone() for parameter in training.adapter.parameters]
    whole = training.run()
    moved = max(float((a.detach() - b).abs().max()) for a, b in zip(training.adapter.parameters, before, strict=True))
    assert 0 < moved < 1
    cut = prepare(settings_of("cut", name))
    cut.run(lambda event: cut.stop() if event.step == 7 else None)
    result = train(settings_of("cut", name), resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(whole.output), strict=True))


def test_the_automatic_learning_rate_depends_on_the_optimizer(settings_of: Settings) -> None:
    rates = {name: float(settings_of("a", name).learning_rate_text) for name in OPTIMIZERS}
    assert rates == pytest.approx(
        {"adamw": 1e-4, "adamw8bit": 1e-4, "adafactor": 1e-4, "muon": 4e-4, "lion": 1e-5, "prodigy": 1.0, "sgd": 0.1}
    )
    assert auto_learning_rate("adamw", "embedding") == 5e-3
    assert auto_learning_rate("prodigy", "embedding") == 1.0
    assert float(settings_of("a", "lion", learning_rate=3e-4).learning_rate_text) == 3e-4


@pytest.mark.parametrize(
    ("method", "suffix", "factor"), [("hypernetwork", "pt", 10), ("embedding", "pt", 1), ("lora", "safetensors", 10)]
)
def test_the_automatic_learning_rate_depends_on_the_width(
    method: str, suffix: str, factor: float, settings_of: Settings, tmp_path: Path
) -> None:
    usual = {"hypernetwork": 1e-4, "embedding": 5e-3, "lora": 1e-4}[method]
    training = prepare(
        settings_of("a", "adamw", method=method, learning_rate="auto", output=str(tmp_path / f"{method}.{suffix}"))
    )
    assert training.learning_rate.at(1) == pytest.approx(usual * factor)
    assert float(training.config.learning_rate) == pytest.approx(usual * factor)
    assert auto_learning_rate("adamw", method, 640) == pytest.approx(usual * (1 if factor == 1 else 2))
    fixed = prepare(settings_of("b", "adamw", learning_rate=3e-4))
    assert fixed.learning_rate.at(1) == pytest.approx(3e-4)


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.package])
def test_a_missing_or_old_package_is_reported_first(
    name: str, settings_of: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_of("a", name, model="nowhere", images="nowhere")
    kind = OPTIMIZERS[name]
    monkeypatch.setitem(sys.modules, kind.module, None)
    with raises(MissingExtraError, f"pip install {kind.package}"):
        train(config)
    monkeypatch.setitem(sys.modules, kind.module, ModuleType(kind.module))
    with raises(MissingExtraError, kind.name, f"pip install --upgrade {kind.package}"):
        train(config)


def test_language_models_have_a_higher_rate() -> None:
    assert auto_learning_rate("adamw", "hypernetwork", 576, texts=True) == pytest.approx(3e-4 * 1280 / 576)
    assert auto_learning_rate("lion", "lora", 4096, texts=True) == pytest.approx(3e-5 * 1280 / 4096)
    assert auto_learning_rate("prodigy", "lora", 64, texts=True) == 1.0
