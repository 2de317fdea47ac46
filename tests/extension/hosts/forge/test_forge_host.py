"""Forge, whose layers cast their weights at each call."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.standins.webui import running as running_webui
from tests.support.tiny_model import save_hypernetwork
from tests.support.webui_images import by_formula, close, images

TAG = "<hypernet:ink:0.7>"


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "float8_e4m3fn", "int8"])
def test_images_match_the_formula_with_any_storage_type(storage: str, tmp_path: Path) -> None:
    with running_webui(tmp_path / "webui", "forge", storage) as webui:
        webui.install()
        save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
        webui.start()
        stored = {name: value.clone() for name, value in webui.unet.state_dict().items()}
        plain, tagged = images(webui, "a"), images(webui, f"a{TAG}")
        assert all(torch.equal(value, stored[name]) for name, value in webui.unet.state_dict().items())
        by_formula(webui)
        assert close(tagged, images(webui, "a"), plain)


def plain_layers(webui: Webui) -> list[bool]:
    is_plain = importlib.import_module("hnloader_webui.hosts").detect().plain_linears()
    return [is_plain(module) for module in webui.unet.modules() if hasattr(module, "parameters_manual_cast")]


@pytest.mark.parametrize(("storage", "plain"), [("float32", True), ("float16", False), ("int8", False)])
def test_layers_are_plain_if_they_neither_cast_nor_quantize(storage: str, plain: bool, tmp_path: Path) -> None:
    with running_webui(tmp_path / "webui", "forge", storage) as webui:
        webui.install()
        webui.start()
        assert set(plain_layers(webui)) == {plain}


def test_layers_that_are_scaled_or_have_online_loras_are_not_plain(tmp_path: Path) -> None:
    with running_webui(tmp_path / "webui", "forge") as webui:
        webui.install()
        webui.start()
        layers = [module for module in webui.unet.modules() if hasattr(module, "parameters_manual_cast")]
        layers[0].forge_online_loras = {"weight": []}
        layers[1].scale_weight = nn.Parameter(torch.ones(()), requires_grad=False)
        assert plain_layers(webui) == [False, False] + [True] * (len(layers) - 2)
        del layers[0].forge_online_loras
        layers[1].scale_weight = None
        assert all(plain_layers(webui))


def test_layer_with_the_flag_is_plain_only_on_the_device_and_in_the_type_of_the_computation(tmp_path: Path) -> None:
    """On the CPU, ersatzForge sets the flag for all layers; elsewhere, for those whose weights stay on the CPU."""
    with running_webui(tmp_path / "webui", "forge") as webui:
        webui.install()
        webui.start()
        for module in webui.unet.modules():
            if hasattr(module, "parameters_manual_cast"):
                module.parameters_manual_cast = True
        assert all(plain_layers(webui))
        patcher = webui.shared.sd_model.forge_objects.unet
        patcher.load_device = torch.device("cuda", 0)
        assert not any(plain_layers(webui))
        patcher.load_device, patcher.model.computation_dtype = torch.device("cpu"), torch.bfloat16
        assert not any(plain_layers(webui))


def test_fork_without_forges_operations_has_no_plain_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_webui(tmp_path / "webui", "forge") as webui:
        webui.install()
        webui.start()
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "backend.operations")
            assert not any(plain_layers(webui))
        operations = sys.modules["backend.operations"]
        monkeypatch.setattr(operations.ForgeOperations.Linear, "forward", lambda self, x: x)
        assert not any(plain_layers(webui))
