"""Settings that contradict each other are named before the first step."""

from __future__ import annotations

from typing import Any

import pytest

from hnloader.training import read_config
from hnloader.training.conflicts import conflicts


def found(*, has_validation: bool = True, **settings: Any) -> list[str]:
    config = read_config(overrides={key.replace("__", "."): value for key, value in settings.items()})
    return list(conflicts(config, has_validation=has_validation))


@pytest.mark.parametrize("preset", ["style", "subject"])
@pytest.mark.parametrize("method", ["hypernetwork", "embedding", "lora"])
def test_the_defaults_are_in_harmony(method: str, preset: str) -> None:
    config = read_config(overrides={"method": method, "prior.weight": 0.0}, preset=preset)
    assert list(conflicts(config, has_validation=True)) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"learning_rate": "5e-5:100, 1e-5", "lr_scheduler": "linear"}, "lr_scheduler"),
        ({"lr_warmup_steps": 100, "steps": 100}, "lr_warmup_steps"),
        ({"optimizer": "prodigy", "learning_rate": 1e-4}, "prodigy"),
        ({"ema_decay": 0.9999}, "ema_decay"),
        ({"early_stopping_patience": 3, "validate_every_n_steps": 0}, "early_stopping_patience"),
        ({"early_stopping_patience": 3, "has_validation": False}, "early_stopping_patience"),
        ({"early_stopping_patience": 40}, "early_stopping_patience"),
        ({"prior__weight": 0.5, "method": "embedding"}, "prior.weight"),
        ({"hypernetwork__initialization": "KaimingNormal"}, "hypernetwork.initialization"),
        ({"hypernetwork__dropout": 0.1, "hypernetwork__layer_structure": [1, 1]}, "hypernetwork.dropout"),
        ({"hypernetwork__activate_output": True, "hypernetwork__activation": "relu"}, "hypernetwork.activate_output"),
        (
            {"hypernetwork__activate_output": True, "hypernetwork__activation": "linear"},
            "hypernetwork.activate_output",
        ),
    ],
)
def test_a_conflict_is_named_once(settings: dict[str, Any], named: str) -> None:
    (message,) = found(**settings)
    assert named in message


def test_settings_of_another_method_or_of_a_file_do_not_count() -> None:
    assert found(method="lora", hypernetwork__initialization="KaimingNormal") == []
    assert found(start_from="style.pt", hypernetwork__activate_output=True) == []
