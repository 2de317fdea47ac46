"""Each optimizer trains, goes on bit for bit, and says what it lacks."""

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
from hnloader.training.optimizers import KINDS, auto_rate

Settings = Callable[..., Any]


class Eightbit(optim.Adam):
    """In the place of bitsandbytes: takes the same arguments, keeps bytes and numbers as its state, and gives what is
    quantised in a mapping within each parameter's, as bitsandbytes 0.50 does."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for values in self.state.values():
            values["quantised"] = values["exp_avg"].mul(1e4).clamp(0, 255).to(torch.uint8)
            values["steps"] = int(values["step"])

    def state_dict(self) -> dict[str, Any]:
        found = super().state_dict()
        wrapped = {
            index: {**values, "quant_state": {"quantised": values["quantised"], "bits": 8}}
            for index, values in found["state"].items()
        }
        for values in wrapped.values():
            del values["quantised"]
        return {**found, "state": wrapped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        plain = {}
        for index, values in state_dict["state"].items():
            inner = values["quant_state"]
            assert inner["bits"] == 8
            assert inner["quantised"].dtype == torch.uint8
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
        quick = {"steps": 12, "warmup": 2, "save_every": 5, "measure_every": 0, "previews.every": 0}
        return read_config(None, {**given, **quick, "optimizer": optimizer, **changes})

    return make


def weights(path: Path) -> list[torch.Tensor]:
    return list(hnloader.load(path).state_dict().values())


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_and_goes_on_bit_for_bit(name: str, settings_of: Settings, bitsandbytes: None) -> None:
    training = prepare(settings_of("whole", name))
    before = [parameter.detach().clone() for parameter in training.adapter.parameters]
    whole = training.run()
    moved = max(float((a.detach() - b).abs().max()) for a, b in zip(training.adapter.parameters, before, strict=True))
    assert 0 < moved < 1
    cut = prepare(settings_of("cut", name))
    cut.run(lambda event: cut.stop() if event.step == 7 else None)
    result = train(settings_of("cut", name), resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(result.output), weights(whole.output), strict=True))


def test_the_automatic_rate_is_the_optimizers_own(settings_of: Settings) -> None:
    rates = {name: float(settings_of("a", name).rate_text) for name in KINDS}
    assert rates == pytest.approx(
        {"adamw": 1e-4, "adamw8bit": 1e-4, "adafactor": 1e-4, "lion": 1e-5, "prodigy": 1.0, "sgd": 0.1}
    )
    assert auto_rate("adamw", "embedding") == 5e-3
    assert auto_rate("prodigy", "embedding") == 1.0
    assert float(settings_of("a", "lion", learning_rate=3e-4).rate_text) == 3e-4


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.package])
def test_a_package_that_is_missing_or_too_old_is_named_before_anything_is_read(
    name: str, settings_of: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_of("a", name, model="nowhere", images="nowhere")
    kind = KINDS[name]
    monkeypatch.setitem(sys.modules, kind.module, None)
    with pytest.raises(MissingExtraError, match=f"pip install {kind.package}, or take adamw"):
        train(config)
    monkeypatch.setitem(sys.modules, kind.module, ModuleType(kind.module))
    with pytest.raises(MissingExtraError, match=f"has no {kind.name}.*--upgrade"):
        train(config)
