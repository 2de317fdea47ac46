"""The layers whose forward, as the Lora extension patches it, only multiplies by the weight."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.standins.webui import Webui
from tests.support.standins.webui import running as running_webui


@pytest.fixture
def webui(tmp_path: Path) -> Iterator[Webui]:
    with running_webui(tmp_path / "webui") as webui:
        webui.install()
        webui.start()
        yield webui


def layer(webui: Webui) -> nn.Linear:
    return webui.unet.input_blocks[1][1].transformer_blocks[0].attn1.to_k


def is_plain(webui: Webui, module: nn.Module | None = None) -> bool:
    test: Callable[[nn.Module], bool] = importlib.import_module("hnloader_webui.hosts").detect().plain_linears()
    return test(layer(webui) if module is None else module)


def add_lora(webui: Webui, name: str = "a") -> None:
    module = layer(webui)
    webui.lora.loaded_networks.append(
        webui.lora.Network(name, {module.network_layer_name: torch.ones_like(module.weight)})
    )


def call(webui: Webui) -> None:
    module = layer(webui)
    module(torch.zeros(1, module.in_features))


def test_without_lora_all_linears_are_plain(webui: Webui) -> None:
    assert is_plain(webui)
    assert not is_plain(webui, nn.Conv2d(1, 1, 1))
    assert not is_plain(webui, type("Other", (nn.Linear,), {})(1, 1))
    webui.lora.undo()
    assert is_plain(webui)
    assert not is_plain(webui, nn.Conv2d(1, 1, 1))


def test_layer_is_plain_once_its_weight_holds_the_loras_of_the_job(webui: Webui) -> None:
    changes = (
        lambda: add_lora(webui),
        lambda: setattr(webui.lora.loaded_networks[0], "unet_multiplier", 0.5),  # as other extensions do during a job
        lambda: add_lora(webui, "b"),
        webui.lora.loaded_networks.reverse,
        webui.lora.loaded_networks.clear,
    )
    for change in changes:
        change()
        assert not is_plain(webui)
        call(webui)
        assert is_plain(webui)


def test_layer_is_not_plain_after_loading_another_checkpoint_into_it(webui: Webui) -> None:
    add_lora(webui)
    call(webui)
    layer(webui).load_state_dict(layer(webui).state_dict())
    assert not is_plain(webui)


def test_loras_that_are_added_to_results_leave_no_plain_layer(webui: Webui) -> None:
    webui.shared.opts.lora_functional = True
    assert is_plain(webui)
    add_lora(webui)
    call(webui)
    assert not is_plain(webui)


def test_loras_of_an_unknown_version_leave_no_plain_layer(webui: Webui) -> None:
    add_lora(webui)
    call(webui)
    layer(webui).network_current_names = tuple((*each, "more") for each in layer(webui).network_current_names)
    assert not is_plain(webui)


def test_forward_of_another_program_leaves_no_plain_layer(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    def cast(self: nn.Linear, *args: torch.Tensor) -> torch.Tensor:
        return ours(self, *args)

    ours = nn.Linear.forward
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", cast)
        assert not is_plain(webui)
    with monkeypatch.context() as patch:
        patch.setattr(webui.lora.originals, "Linear_forward", cast)
        assert not is_plain(webui)
    assert is_plain(webui)


def test_low_vram_leaves_no_plain_layer(webui: Webui) -> None:
    webui.shared.sd_model.lowvram = True
    assert not is_plain(webui)
    webui.shared.sd_model.lowvram = False
    assert is_plain(webui)
