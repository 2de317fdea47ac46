"""The tag where a webui does more than one plain pass: hires, batches, inpainting, LoRA, other models, moves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.standins.reference import wrap
from tests.support.standins.unets import ALL_WIDTHS, CrossAttention
from tests.support.standins.webui import Webui, running
from tests.support.tiny_model import save_hypernetwork

TAG = "<hypernet:ink:0.7>"


@pytest.fixture
def host(webui: Webui) -> Webui:
    """A host with the extension and one file, started."""
    webui.install()
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    webui.start()
    return webui


def by_formula(webui: Webui) -> None:
    """From here on the present model computes the hypernetwork by itself."""
    wrap(webui.unet, [(webui.hypernetworks / "ink.pt", 0.7)])


def images(webui: Webui, prompt: str | list[str], **fields: Any) -> Tensor:
    return torch.stack(webui.generate(prompt, **fields).images)


def close(found: Tensor, expected: Tensor, plain: Tensor, tolerance: float = 1e-4) -> bool:
    """The same but for float noise, measured by what the hypernetwork changes."""
    changed = (expected - plain).abs().max()
    return bool(changed > 0.01) and bool((found - expected).abs().max() < tolerance * changed)


def hooks(webui: Webui) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in webui.unet.modules())


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
def test_it_is_the_formula_in(fields: dict[str, Any], host: Webui) -> None:
    plain, tagged = images(host, "a", **fields), images(host, f"a{TAG}", **fields)
    assert hooks(host) == 0
    assert torch.equal(images(host, "a", **fields), plain)
    by_formula(host)
    assert close(tagged, images(host, "a", **fields), plain)


def test_each_image_of_a_batch_is_the_one_made_alone(host: Webui) -> None:
    batch = images(host, f"a{TAG}", batch_size=3)
    for index, image in enumerate(batch):
        alone = images(host, f"a{TAG}", seed=1 + index)[0]
        assert torch.allclose(image, alone, atol=1e-4)


def test_inpainting_leaves_what_is_outside_of_the_mask(host: Webui) -> None:
    (image,) = images(host, f"a{TAG}", is_img2img=True, init=INIT, mask=MASK)
    outside = MASK == 0
    assert torch.equal(image[outside], INIT[outside])


def test_each_pass_has_its_own_tags(host: Webui) -> None:
    plain = images(host, "a", enable_hr=True)
    second_only = images(host, "a", enable_hr=True, hr_prompt=f"a{TAG}")
    both = images(host, f"a{TAG}", enable_hr=True)
    assert not torch.equal(second_only, plain)
    assert not torch.equal(second_only, both)
    assert hooks(host) == 0


# -- LoRA


@pytest.fixture
def lora(host: Webui, monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
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


def test_together_with_a_lora_it_is_the_formula_on_the_patched_layers(
    host: Webui, lora: Callable[[nn.Module], None]
) -> None:
    without = images(host, f"a{TAG}")
    lora(host.unet)
    plain, tagged = images(host, "a"), images(host, f"a{TAG}")
    assert not torch.equal(tagged, without)
    by_formula(host)
    assert close(tagged, images(host, "a"), plain)


def test_a_lora_that_changes_weights_in_the_middle_of_a_job_counts_from_there(host: Webui) -> None:
    """A1111 writes a LoRA into the weights when a layer is first called, after the tags have been activated."""
    weights = [
        getattr(module, name).weight
        for module in host.unet.modules()
        if isinstance(module, CrossAttention)
        for name in ("to_k", "to_v")
    ]
    before = [weight.clone() for weight in weights]

    def change(step: int) -> None:
        if step == 1:
            for weight in weights:
                weight.data.mul_(1.5)

    def job(prompt: str) -> Tensor:
        made = images(host, prompt, at_step=change)
        for weight, kept in zip(weights, before, strict=True):
            weight.data.copy_(kept)
        return made

    plain, tagged = job("a"), job(f"a{TAG}")
    assert not torch.equal(plain, images(host, "a"))
    by_formula(host)
    assert close(tagged, job("a"), plain)


# -- other models


@pytest.mark.parametrize("how", ["a new model", "into the same modules", "kept in memory"])
def test_after_a_switch_and_back_it_is_the_formula_and_nothing_is_left(how: str, host: Webui) -> None:
    host.sd_models.settings.into_same_modules = how == "into the same modules"
    host.sd_models.settings.keep = int(how == "kept in memory")
    first, tagged_first = images(host, "a"), images(host, f"a{TAG}")
    host.switch("second")
    second, tagged = images(host, "a"), images(host, f"a{TAG}")
    assert not torch.equal(second, first)
    assert hooks(host) == 0
    host.switch("first")
    assert torch.equal(images(host, f"a{TAG}"), tagged_first)
    assert torch.equal(images(host, "a"), first)
    assert hooks(host) == 0
    host.switch("second")
    by_formula(host)
    assert close(tagged, images(host, "a"), second)


def test_a_switch_between_the_passes_is_followed(host: Webui) -> None:
    fields = {"enable_hr": True, "hr_checkpoint": "second"}
    plain, tagged = images(host, "a", **fields), images(host, f"a{TAG}", **fields)
    first_only = images(host, f"a{TAG}", **fields, hr_prompt="a")
    assert not torch.equal(tagged, plain)
    assert not torch.equal(tagged, first_only)
    assert hooks(host) == 0


# -- weights that are moved and cast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_follows_the_type_of_the_model_also_in_the_middle_of_a_job(dtype: torch.dtype, host: Webui) -> None:
    unet = host.unet

    def cast(step: int) -> None:
        unet.to(dtype if step in (1, 2) else torch.float32)

    plain, tagged = images(host, "a", at_step=cast), images(host, f"a{TAG}", at_step=cast)
    assert tagged.isfinite().all()
    expected = images(host, f"a{TAG}")
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.01
    assert close(tagged, expected, plain, tolerance)
    assert hooks(host) == 0


def test_it_never_reads_weights_that_are_away(host: Webui) -> None:
    """As with --lowvram: each module's weights are on the device only while it runs; `meta` stands for elsewhere."""
    plain, expected = images(host, "a"), images(host, f"a{TAG}")
    away: dict[nn.Module, dict[str, Tensor]] = {}

    def fetch(module: nn.Module, _: Any) -> None:
        for name, value in away[module].items():
            setattr(module, name, nn.Parameter(value, requires_grad=False))

    def send_away(module: nn.Module, *_: Any) -> None:
        away[module] = {name: value.data for name, value in module.named_parameters(recurse=False)}
        for name, value in away[module].items():
            setattr(module, name, nn.Parameter(value.to("meta"), requires_grad=False))

    for module in host.unet.modules():
        if isinstance(module, CrossAttention):
            for name in ("to_q", "to_k", "to_v"):
                projection = getattr(module, name)
                send_away(projection)
                projection.register_forward_pre_hook(fetch)
                projection.register_forward_hook(send_away)
    own = hooks(host)
    assert torch.equal(images(host, f"a{TAG}"), expected)
    assert torch.equal(images(host, "a"), plain)
    assert hooks(host) == own


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "float8_e4m3fn", "int8"])
def test_in_forge_it_is_the_formula_on_weights_of_any_type(storage: str, tmp_path: Path) -> None:
    with running(tmp_path / "webui", forge=True, storage=storage) as host:
        host.install()
        save_hypernetwork(host.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
        host.start()
        stored = {name: value.clone() for name, value in host.unet.state_dict().items()}
        plain, tagged = images(host, "a"), images(host, f"a{TAG}")
        assert all(torch.equal(value, stored[name]) for name, value in host.unet.state_dict().items())
        by_formula(host)
        assert close(tagged, images(host, "a"), plain)


# -- many files


class Opened:
    """The files that Python opens while `paths` is a list; such a hook stays until the process ends."""

    paths: list[str] | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.paths is not None and isinstance(arguments[0], str):
            self.paths.append(arguments[0])


_opened = Opened()


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths of the files that are opened from here on."""
    if not hasattr(_opened, "added"):
        sys.addaudithook(_opened)
        _opened.added = True
    _opened.paths = []
    yield _opened.paths
    _opened.paths = None


def test_starting_with_2000_files_of_which_50_are_broken_opens_none(webui: Webui, opened: list[str]) -> None:
    webui.install()
    good = save_hypernetwork(webui.hypernetworks / "good.pt", ALL_WIDTHS, seed=1).read_bytes()
    for number in range(2000):
        content = b"broken" if number % 40 == 0 else good
        (webui.hypernetworks / f"file-{number:04}{('.pt', '.safetensors', '.hns')[number % 3]}").write_bytes(content)
    opened.clear()
    webui.start()
    webui.tabs()
    (page,) = (page for page in webui.part("ui_extra_networks").extra_pages if page.title == "Hypernetworks")
    page.create_html("txt2img")
    webui.reload()
    assert len(webui.shared.hypernetworks) == len(page.items) == 2001
    assert [path for path in opened if path.startswith(str(webui.hypernetworks))] == []
    webui.generate("a<hypernet:good>")
    assert {path for path in opened if path.startswith(str(webui.hypernetworks))} == {
        str(webui.hypernetworks / "good.pt")
    }
