"""Tags where a webui runs more than one plain pass: hires, batches, inpainting, LoRA, model switches, offloading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.standins.unets import ALL_WIDTHS, CrossAttention
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork
from tests.support.webui_images import by_formula, close, images

TAG = "<hypernet:ink:0.7>"


@pytest.fixture
def running(webui: Webui) -> Webui:
    """A webui with the extension and one file, started."""
    webui.install()
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    webui.start()
    return webui


MASK = torch.zeros(4, 8, 8)


MASK[:, 2:6, 2:6] = 1


INIT = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_hr": True},
        {"batch_size": 3},
        {"batch_size": 2, "n_iter": 2},
        {"is_img2img": True, "init": INIT},
        {"is_img2img": True, "init": INIT, "mask": MASK, "batch_size": 2},
    ],
    ids=["hires pass", "batch", "batches", "img2img", "inpainting"],
)
def test_images_match_the_formula_in(fields: dict[str, Any], running: Webui) -> None:
    plain, tagged = images(running, "a", **fields), images(running, f"a{TAG}", **fields)
    assert running.hooks == 0
    assert torch.equal(images(running, "a", **fields), plain)
    by_formula(running)
    assert close(tagged, images(running, "a", **fields), plain)


def test_batch_equals_single_images(running: Webui) -> None:
    batch = images(running, f"a{TAG}", batch_size=3)
    for index, image in enumerate(batch):
        alone = images(running, f"a{TAG}", seed=1 + index)[0]
        assert torch.allclose(image, alone, atol=1e-4)


def test_inpainting_keeps_the_unmasked_part(running: Webui) -> None:
    (image,) = images(running, f"a{TAG}", is_img2img=True, init=INIT, mask=MASK)
    outside = MASK == 0
    assert torch.equal(image[outside], INIT[outside])


def test_each_pass_has_its_own_tags(running: Webui) -> None:
    plain = images(running, "a", enable_hr=True)
    second_only = images(running, "a", enable_hr=True, hr_prompt=f"a{TAG}")
    both = images(running, f"a{TAG}", enable_hr=True)
    assert not torch.equal(second_only, plain)
    assert not torch.equal(second_only, both)
    assert running.hooks == 0


@pytest.fixture
def lora(running: Webui, monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
    """Patches `to_k` and `to_v` of a model as the hosts' LoRA does: A1111 all of `Linear.forward`, Forge the module."""

    def delta(module: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(module.in_features)
        up, down = (
            torch.randn(module.out_features, 2, generator=generator),
            torch.randn(2, module.in_features, generator=generator),
        )
        return 0.3 * up @ down

    def apply(unet: nn.Module) -> None:
        for attention in (module for module in unet.modules() if isinstance(module, CrossAttention)):
            for name in ("to_k", "to_v"):
                getattr(attention, name).low_rank = delta(getattr(attention, name))
        kinds = {type(module) for module in unet.modules() if hasattr(module, "low_rank")}
        for kind in kinds:
            original = kind.forward

            def forward(self: Any, x: Tensor, original: Any = original) -> Tensor:
                result = original(self, x)
                return result if not hasattr(self, "low_rank") else result + x @ self.low_rank.T

            monkeypatch.setattr(kind, "forward", forward)

    return apply


def test_lora_and_hypernetwork_combine(running: Webui, lora: Callable[[nn.Module], None]) -> None:
    without = images(running, f"a{TAG}")
    lora(running.unet)
    plain, tagged = images(running, "a"), images(running, f"a{TAG}")
    assert not torch.equal(tagged, without)
    by_formula(running)
    assert close(tagged, images(running, "a"), plain)


def test_lora_that_changes_weights_during_a_job_counts(running: Webui) -> None:
    """A1111 writes a LoRA into the weights when a layer is first called, after the tags have been activated."""
    weights = [
        getattr(module, name).weight
        for module in running.unet.modules()
        if isinstance(module, CrossAttention)
        for name in ("to_k", "to_v")
    ]
    before = [weight.clone() for weight in weights]

    def change(step: int) -> None:
        if step == 1:
            for weight in weights:
                weight.data.mul_(1.5)

    def job(prompt: str) -> Tensor:
        made = images(running, prompt, at_step=change)
        for weight, kept in zip(weights, before, strict=True):
            weight.data.copy_(kept)
        return made

    plain, tagged = job("a"), job(f"a{TAG}")
    assert not torch.equal(plain, images(running, "a"))
    by_formula(running)
    assert close(tagged, job("a"), plain)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a new model", "into the same modules", "kept in memory"])
def test_checkpoint_switch_and_back(how: str, running: Webui) -> None:
    running.sd_models.settings.into_same_modules = how == "into the same modules"
    running.sd_models.settings.keep = int(how == "kept in memory")
    first, tagged_first = images(running, "a"), images(running, f"a{TAG}")
    running.switch("second")
    second, tagged = images(running, "a"), images(running, f"a{TAG}")
    assert not torch.equal(second, first)
    assert running.hooks == 0
    running.switch("first")
    assert torch.equal(images(running, f"a{TAG}"), tagged_first)
    assert torch.equal(images(running, "a"), first)
    assert running.hooks == 0
    running.switch("second")
    by_formula(running)
    assert close(tagged, images(running, "a"), second)


@pytest.mark.slow
def test_checkpoint_switch_between_passes(running: Webui) -> None:
    fields = {"enable_hr": True, "hr_checkpoint": "second"}
    plain, tagged = images(running, "a", **fields), images(running, f"a{TAG}", **fields)
    first_only = images(running, f"a{TAG}", **fields, hr_prompt="a")
    assert not torch.equal(tagged, plain)
    assert not torch.equal(tagged, first_only)
    assert running.hooks == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_change_during_a_job(dtype: torch.dtype, running: Webui) -> None:
    unet = running.unet

    def cast(step: int) -> None:
        unet.to(dtype if step in (1, 2) else torch.float32)

    plain, tagged = images(running, "a", at_step=cast), images(running, f"a{TAG}", at_step=cast)
    assert tagged.isfinite().all()
    expected = images(running, f"a{TAG}")
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.01
    assert close(tagged, expected, plain, tolerance)
    assert running.hooks == 0


def test_offloaded_weights_are_never_read(running: Webui) -> None:
    """As with --lowvram: each module's weights are on the device only while it runs; `meta` stands for elsewhere."""
    plain, expected = images(running, "a"), images(running, f"a{TAG}")
    away: dict[nn.Module, dict[str, Tensor]] = {}

    def fetch(module: nn.Module, _: Any) -> None:
        for name, value in away[module].items():
            setattr(module, name, nn.Parameter(value, requires_grad=False))

    def send_away(module: nn.Module, *_: Any) -> None:
        away[module] = {name: value.data for name, value in module.named_parameters(recurse=False)}
        for name, value in away[module].items():
            setattr(module, name, nn.Parameter(value.to("meta"), requires_grad=False))

    for module in running.unet.modules():
        if isinstance(module, CrossAttention):
            for name in ("to_q", "to_k", "to_v"):
                projection = getattr(module, name)
                send_away(projection)
                projection.register_forward_pre_hook(fetch)
                projection.register_forward_hook(send_away)
    own = running.hooks
    assert torch.equal(images(running, f"a{TAG}"), expected)
    assert torch.equal(images(running, "a"), plain)
    assert running.hooks == own
