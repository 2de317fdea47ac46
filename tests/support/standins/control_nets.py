"""A ControlNet in the stand-in hosts, and the extensions that run it: within a replaced `forward` of the UNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tests.support.standins.unets import UNetModel
from tests.support.standins.webui import Webui

# The extension of AUTOMATIC1111: its script holds the networks of the running job, each within a wrapper.
SCRIPT = """
from types import SimpleNamespace
from modules import scripts, shared

class ControlNetScript(scripts.Script):
    latest_network = None

    def title(self):
        return "ControlNet"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        units = [SimpleNamespace(control_model=wrapper) for wrapper in shared.control_wrappers]
        self.latest_network = SimpleNamespace(control_params=units)

    def postprocess(self, p, processed, *args):
        self.latest_network = None
"""


class ControlNet(nn.Module):
    """The first half of a UNet, without up blocks."""

    def __init__(self, built_in: Sequence | None = None) -> None:
        super().__init__()
        whole = UNetModel(built_in=built_in)
        self.input_blocks, self.middle_block = whole.input_blocks, whole.middle_block
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        size = x.shape[-2:]
        for block in [*self.input_blocks, self.middle_block]:
            x = block(x, timesteps, context)
        return nn.functional.interpolate(self.out(x), size=size)


class Wrapper(nn.Module):
    """The extension keeps each network within a module like this."""

    def __init__(self, network: ControlNet) -> None:
        super().__init__()
        self.control_model = network

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return self.control_model(x, timesteps, context)


def install(webui: Webui) -> None:
    """Install the extension, before the webui starts; Forge has its own."""
    if not webui.forge:
        webui.add_script("controlnet", SCRIPT)


def connect(webui: Webui) -> ControlNet:
    """Use one random ControlNet twice in each job from now on."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        built_in = None if webui.forge else webui.shared.loaded_hypernetworks
        network = ControlNet(built_in).eval().requires_grad_(False)
    if webui.forge:
        chain = None
        for _ in range(2):
            chain = SimpleNamespace(control_model=network, previous_controlnet=chain)
        webui.shared.sd_model.forge_objects.unet.controlnet_linked_list = chain
    else:
        webui.shared.control_wrappers = [Wrapper(network), Wrapper(network)]
    webui.unet.forward = controlled(webui.unet.forward, network)
    return network


def controlled(forward: Callable[..., Tensor], network: ControlNet) -> Callable[..., Tensor]:
    """Return the UNet's forward with the ControlNet's output added."""

    def run(x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return forward(x, timesteps, context) + 0.5 * network(x, timesteps, context)

    return run
