"""Jobs in which hypernetworks may be folded into layers: the webui's weights keep their values, and LoRAs count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hnloader
from hnloader.attention import attachments
from hnloader.network import Architecture, Hypernetwork
from tests.support.standins.unets import ALL_WIDTHS, CrossAttention
from tests.support.standins.webui import Webui
from tests.support.webui_images import by_formula, close, images

TAG = "<hypernet:ink:0.7>"


@pytest.fixture(params=["linear", "relu"])
def running(request: pytest.FixtureRequest, webui: Webui) -> Webui:
    """A webui with the extension and one file, started."""
    webui.install()
    torch.manual_seed(3)
    keys = {"layer_structure": [1, 2, 1], "activation_func": request.param, "activate_output": False}
    made = Hypernetwork.new(ALL_WIDTHS, Architecture((1, 2, 1), request.param), name="ink", metadata=keys)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    hnloader.save(made, webui.hypernetworks / "ink.pt")
    webui.start()
    return webui


def projections(webui: Webui) -> dict[str, nn.Module]:
    """Return `to_k` and `to_v` of all layers by name."""
    return {
        f"{name}.{part}": getattr(module, part)
        for name, module in webui.unet.named_modules()
        if isinstance(module, CrossAttention)
        for part in ("to_k", "to_v")
    }


class Lora:
    """A LoRA on all `to_k` and `to_v`, set and removed as the webui does it: before a job or in the middle of one."""

    def __init__(self, webui: Webui) -> None:
        self._webui = webui
        self._layers = projections(webui)
        self._originals = {name: layer.weight for name, layer in self._layers.items()}
        random = torch.Generator().manual_seed(5)
        self._deltas = {
            name: 0.2 * torch.randn(layer.out_features, layer.in_features, generator=random)
            for name, layer in self._layers.items()
        }

    def set(self, strength: float) -> None:
        if self._webui.forge:
            self._replace_weights(strength)
            return
        networks = self._webui.lora
        deltas = {self._layers[name].network_layer_name: delta for name, delta in self._deltas.items()}
        networks.loaded_networks[:] = [networks.Network("a", deltas, unet_multiplier=strength)] if strength else []

    def _replace_weights(self, strength: float) -> None:
        """Forge restores the parameters, then makes new ones."""
        with torch.inference_mode():
            for name, weight in self._originals.items():
                changed = nn.Parameter(weight + strength * self._deltas[name], requires_grad=False)
                self._layers[name].weight = changed if strength else weight


def test_lora_between_jobs_counts(running: Webui) -> None:
    lora, strengths = Lora(running), (0.0, 1.0, 0.5, 0.0, 1.0)

    def jobs(prompt: str) -> list[Tensor]:
        made = []
        for strength in strengths:
            lora.set(strength)
            made.append(images(running, prompt))
        return made

    plain, tagged = jobs("a"), jobs(f"a{TAG}")
    assert not torch.equal(tagged[1], tagged[2])
    by_formula(running)
    assert all(map(close, tagged, jobs("a"), plain))


@pytest.mark.parametrize("fields", [{"steps": 6}, {"steps": 3, "enable_hr": True}], ids=["one pass", "hires pass"])
def test_lora_that_comes_changes_and_goes_during_a_job_counts(running: Webui, fields: dict[str, Any]) -> None:
    lora = Lora(running)
    strengths = iter((0.0, 1.0, 1.0, 0.5, 0.0, 0.0) * 3)

    def job(prompt: str) -> Tensor:
        return images(running, prompt, at_step=lambda step: lora.set(next(strengths)), **fields)

    plain, tagged = job("a"), job(f"a{TAG}")
    by_formula(running)
    assert close(tagged, job("a"), plain)


@pytest.mark.parametrize("running", ["linear"], indirect=True)
def test_a_linear_file_is_folded_while_layers_are_plain(running: Webui) -> None:
    lora = Lora(running)
    folded = []

    def look(step: int) -> None:
        lora.set(0.5 * (step in (2, 3)))
        rows = attachments(running.unet)[0].explain().rows
        folded.append(all(row.plan == "fold" for row in rows if row.kind == "self"))

    images(running, f"a{TAG}", steps=6, at_step=look)
    # In the first call after a change, A1111's layers write the LoRA into their weights or take it out.
    assert folded[1:] == [True, running.forge, True, running.forge, True]


@pytest.mark.parametrize("running", ["linear"], indirect=True)
@pytest.mark.parametrize("webui", ["forge"], indirect=True)
def test_a_cast_to_the_same_type_does_not_keep_layers_from_being_folded(running: Webui) -> None:
    for layer in projections(running).values():
        layer.parameters_manual_cast = True
    plans = set()

    def look(step: int) -> None:
        plans.update(row.plan for row in attachments(running.unet)[0].explain().rows if row.kind == "self")

    plain, tagged = images(running, "a"), images(running, f"a{TAG}", at_step=look)
    assert "fold" in plans
    by_formula(running)
    assert close(tagged, images(running, "a"), plain)


def test_parameters_keep_their_values_within_each_call(running: Webui) -> None:
    """Each weight is the webui's own: with its LoRA, without the hypernetwork."""
    lora = Lora(running)
    unet = running.unet
    seen: list[dict[str, Tensor]] = []

    def look(module: nn.Module, *_: Any) -> None:
        seen.append({name: value.clone() for name, value in unet.state_dict().items()})

    handle = unet.out.register_forward_hook(look)
    before = dict(unet.named_parameters())
    for prompt in ("a", f"a{TAG}"):
        images(running, prompt, at_step=lambda step: lora.set(0.5 * (step > 1)))
        lora.set(0.0)
        images(running, "a", steps=1)
    handle.remove()
    half = len(seen) // 2
    for plain, tagged in zip(seen[:half], seen[half:], strict=True):
        assert plain.keys() == tagged.keys()
        assert all(torch.equal(value, plain[name]) for name, value in tagged.items())
    assert all(parameter is before[name] for name, parameter in unet.named_parameters())
    assert not any("forward" in module.__dict__ for module in unet.modules())


@pytest.mark.parametrize("fields", [{"refiner": "second"}, {"enable_hr": True, "hr_checkpoint": "second"}])
def test_other_checkpoint_during_a_job(running: Webui, fields: dict[str, Any]) -> None:
    plain, tagged = images(running, "a", **fields), images(running, f"a{TAG}", **fields)
    assert running.hooks == 0
    both = running.unet
    running.switch("second" if running.shared.sd_model.name == "first" else "first")
    assert running.unet is not both
    assert running.hooks == 0
    running.switch("first")
    assert torch.equal(images(running, "a", **fields), plain)
    assert torch.equal(images(running, f"a{TAG}", **fields), tagged)


@contextmanager
def manual_cast() -> Iterator[None]:
    """Compute in float32 from weights of another dtype, as A1111 does where a device has no autocast."""
    original = nn.Linear.forward

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        stored = self.weight.dtype
        self.to(x.dtype)
        result = original(self, x)
        self.to(stored)
        return result

    nn.Linear.forward = forward
    try:
        yield
    finally:
        nn.Linear.forward = original


def store(webui: Webui, dtype: torch.dtype) -> None:
    with torch.inference_mode(webui.forge):
        for layer in projections(webui).values():
            layer.to(dtype)
            layer.parameters_manual_cast = dtype != torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("webui", ["a1111"], indirect=True)  # for Forge's own casts, see test_forge_host.py
def test_weights_that_the_webui_casts_in_each_call(dtype: torch.dtype, running: Webui) -> None:
    store(running, dtype)
    with manual_cast():
        plain, tagged = images(running, "a"), images(running, f"a{TAG}")
        by_formula(running)
        assert close(tagged, images(running, "a"), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_weights_under_autocast(dtype: torch.dtype, running: Webui) -> None:
    store(running, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        plain, tagged = images(running, "a"), images(running, f"a{TAG}")
        by_formula(running)
        assert close(tagged, images(running, "a"), plain, 0.1)


@pytest.mark.parametrize("webui", ["a1111"], indirect=True)
def test_low_vram_weights_are_read_only_while_their_block_runs(running: Webui) -> None:
    """A1111 moves each block to the device when it is called, and the one before away; NaN stands for elsewhere."""
    plain, expected = images(running, "a"), images(running, f"a{TAG}")
    running.shared.sd_model.lowvram = True
    unet = running.unet
    away: dict[nn.Module, list[Tensor]] = {}
    present: list[nn.Module] = []

    def send_away(block: nn.Module) -> None:
        away[block] = [parameter.data for parameter in block.parameters()]
        for parameter in block.parameters():
            parameter.data = torch.full_like(parameter, torch.nan)

    def fetch(block: nn.Module, _: Any) -> None:
        if block in present:
            return
        while present:
            send_away(present.pop())
        for parameter, value in zip(block.parameters(), away.pop(block), strict=True):
            parameter.data = value
        present.append(block)

    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        send_away(block)
        block.register_forward_pre_hook(fetch)
    assert close(images(running, f"a{TAG}"), expected, plain)
    assert torch.equal(images(running, "a"), plain)
