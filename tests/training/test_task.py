from __future__ import annotations

from typing import Any

import pytest
import torch

from hnloader.attention import AttentionSite
from hnloader.training import read_config
from hnloader.training.task import resolved


def sites(*widths: int) -> list[AttentionSite]:
    return [
        AttentionSite(index, f"attn{index}", "mid", "self", width, torch.nn.Identity())
        for index, width in enumerate(widths)
    ]


def found(width: int, **changes: Any) -> Any:
    return resolved(read_config(None, {"model": "m", "images": "i", "output": "o.pt", **changes}), sites(16, width))


@pytest.mark.parametrize(("width", "ratio"), [(1280, 2), (640, 2), (512, 2), (320, 3), (128, 8), (24, 8)])
def test_narrow_models_get_wider_hidden_layers(width: int, ratio: int) -> None:
    assert found(width).hypernetwork.layer_structure == (1, ratio, 1)


def test_a_given_structure_stays() -> None:
    assert found(128, **{"hypernetwork.layer_structure": [1, 1.5, 1]}).hypernetwork.layer_structure == (1, 1.5, 1)
    each = {"hypernetwork.scopes": ["each"], "output": "o.safetensors"}
    assert found(128, **each).hypernetwork.layer_structure == (1, 2, 1)


@pytest.mark.parametrize(
    ("changes", "optimizer", "rate"),
    [
        ({}, "muon", 4e-4),
        ({"method": "lora", "output": "o.safetensors"}, "adamw", 1e-4),
        ({"method": "embedding"}, "adamw", 5e-3),
        ({"images": "", "texts": "t", "output": "o.safetensors"}, "adamw", 3e-4),
        ({"optimizer": "lion"}, "lion", 1e-5),
        ({"learning_rate": 2e-3}, "muon", 2e-3),
    ],
)
def test_the_optimizer_follows_the_method(changes: dict[str, Any], optimizer: str, rate: float) -> None:
    config = found(1280, **changes)
    assert config.optimizer == optimizer
    assert float(config.learning_rate) == pytest.approx(rate)


_TEXTS = {"images": "", "texts": "t", "output": "o.safetensors"}


@pytest.mark.parametrize(
    ("width", "changes", "expected"),
    [
        (128, {}, (4, 1)),
        (1280, {}, (1, 4)),
        (512, {"method": "embedding"}, (1, 4)),
        (128, {"batch_size": 2}, (2, 1)),
        (1280, {"gradient_accumulation_steps": 3}, (1, 3)),
        (128, {"gradient_accumulation_steps": 3}, (4, 3)),
        (128, _TEXTS, (1, 1)),
        (1280, {**_TEXTS, "batch_size": 8}, (8, 1)),
    ],
)
def test_a_step_has_four_images_unless_settings_say_otherwise(
    width: int, changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    config = found(width, **changes)
    assert (config.batch_size, config.gradient_accumulation_steps) == expected
