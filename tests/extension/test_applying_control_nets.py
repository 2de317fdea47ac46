"""Hypernetworks in ControlNets, where AUTOMATIC1111's built-in ones act, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.standins import control_nets
from tests.support.standins.reference import wrap
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork
from tests.support.webui_images import close, images

TAG = "<hypernet:ink:0.7>"


@pytest.fixture
def network(webui: Webui) -> control_nets.ControlNet:
    """A ControlNet in each job of a webui with the extension and one file."""
    webui.install()
    control_nets.install(webui)
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    webui.start()
    return control_nets.connect(webui)


def hooks(*models: nn.Module) -> int:
    modules = [module for model in models for module in model.modules()]
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules)


def formula(webui: Webui, *models: nn.Module) -> torch.Tensor:
    for model in models:
        wrap(model, [(webui.hypernetworks / "ink.pt", 0.7)])
    return images(webui, "a")


@pytest.mark.parametrize("on", [True, False])
def test_images_match_the_formula(on: bool, webui: Webui, network: control_nets.ControlNet) -> None:
    webui.shared.opts.hnloader_controlnet = on
    plain, tagged = images(webui, "a"), images(webui, f"a{TAG}")
    assert hooks(webui.unet, network) == 0
    assert torch.equal(images(webui, "a"), plain)
    assert webui.reports == []
    assert close(tagged, formula(webui, webui.unet, *([network] if on else [])), plain)


def test_images_equal_those_of_the_built_in(webui: Webui, network: control_nets.ControlNet) -> None:
    if webui.forge:
        pytest.skip("applies none itself")
    plain, tagged = images(webui, "a"), images(webui, f"a{TAG}")
    networks = webui.part("extra_networks")
    networks.register_default_extra_networks()
    built_in = images(webui, f"a{TAG}")
    webui.shared.loaded_hypernetworks.clear()
    assert close(tagged, built_in, plain)


def test_up_blocks_are_those_of_the_unet(webui: Webui, network: control_nets.ControlNet) -> None:
    both = images(webui, "a<hypernet:ink:0.7:block=up>")
    webui.shared.opts.hnloader_controlnet = False
    assert torch.equal(images(webui, "a<hypernet:ink:0.7:block=up>"), both)
    webui.shared.opts.hnloader_controlnet = True
    mixed = images(webui, "a<hypernet:ink:0.7:block=mid+up>")
    webui.shared.opts.hnloader_controlnet = False
    assert not torch.equal(images(webui, "a<hypernet:ink:0.7:block=mid+up>"), mixed)


def test_other_networks_stay_untouched(webui: Webui, network: control_nets.ControlNet) -> None:
    """IP adapters and others have the same place, but none of the layers of a UNet."""
    other = nn.Linear(3, 3)
    if webui.forge:
        webui.shared.sd_model.forge_objects.unet.controlnet_linked_list.control_model = other
    else:
        webui.shared.control_wrappers[0] = other
    tagged = webui.generate(f"a{TAG}")
    assert "not applied" not in tagged.infotexts[0]
    assert tagged.comments == ""
    assert hooks(other) == 0
