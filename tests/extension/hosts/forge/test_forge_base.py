"""The living forks: each lacks other parts of AUTOMATIC1111's webui."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hnloader.prompt import Tag
from hnloader.ui import Host, ImageRequest
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.standins.webui import running as running_webui
from tests.support.tiny_model import save_hypernetwork
from tests.support.webui_images import by_formula, close, images

NAMES = {
    "a1111": "AUTOMATIC1111",
    "forge": "Forge",
    "reforge": "reForge",
    "classic": "Forge Classic",
    "ersatz": "ersatzForge",
    "neo": "Forge Neo",
}
TAG = "<hypernet:ink:0.7>"
QUICK = "sd_hypernetwork"


@pytest.fixture(params=list(NAMES))
def webui(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Webui]:
    with running_webui(tmp_path / "webui", request.param) as webui:
        yield webui


@pytest.fixture
def running(webui: Webui) -> Webui:
    """A fork with the extension and two files, started. Some forks make no folder for hypernetworks."""
    webui.install()
    webui.hypernetworks.mkdir(exist_ok=True)
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "wash.safetensors", ALL_WIDTHS, seed=2)
    webui.start()
    return webui


def test_host_is_named(running: Webui, request: pytest.FixtureRequest) -> None:
    host = importlib.import_module("hnloader_webui.hosts").detect()
    assert host.name == NAMES[request.node.callspec.params["webui"]]
    assert host.folders() == [running.hypernetworks]
    assert running.reports == []


def test_folder_is_made(webui: Webui, capsys: pytest.CaptureFixture[str]) -> None:
    webui.install()
    webui.start()
    assert webui.hypernetworks.is_dir()
    assert "[hnloader]" not in capsys.readouterr().out
    assert "Did you mean" not in webui.generate("a<hypernet:ink>").comments
    assert webui.reports == []


def test_folder_that_cannot_be_made_turns_nothing_off(webui: Webui, capsys: pytest.CaptureFixture[str]) -> None:
    webui.install()
    webui.hypernetworks.parent.mkdir(exist_ok=True)
    if webui.hypernetworks.is_dir():
        webui.hypernetworks.rmdir()
    webui.hypernetworks.touch()
    webui.start()
    assert "Hypernetworks are off" not in capsys.readouterr().out
    assert "'ink' was not applied" in webui.generate("a<hypernet:ink>").comments


def test_images_match_the_formula(running: Webui) -> None:
    plain, tagged = images(running, "a"), images(running, f"a{TAG}")
    assert running.hooks == 0
    assert torch.equal(images(running, "a", alwayson_scripts={"Hypernetworks": [TAG]}), tagged)
    assert torch.equal(images(running, "a"), plain)
    by_formula(running)
    assert close(tagged, images(running, "a"), plain)
    assert running.reports == []


def test_quick_setting_lists_and_applies(running: Webui) -> None:
    info = running.shared.opts.data_labels[QUICK]
    if info.component_args is not None:  # ours
        assert info.component_args() == {"choices": ["None", "ink", "wash"]}
    tagged = images(running, "a<hypernet:ink:1.0>")
    setattr(running.shared.opts, QUICK, "ink")
    assert torch.equal(images(running, "a"), tagged)
    running.reload()
    assert running.shared.opts.data_labels[QUICK].default == "None"
    assert torch.equal(images(running, "a"), tagged)


def test_cards_and_their_refresh(running: Webui) -> None:
    page = running.cards_page
    page.refresh()
    assert {item["name"] for item in page.list_items()} == {"ink", "wash"}
    save_hypernetwork(running.hypernetworks / "new.pt", ALL_WIDTHS, seed=3)
    page.refresh()
    assert {item["name"] for item in page.list_items()} == {"ink", "new", "wash"}


def test_api_lists_files(running: Webui) -> None:
    """A webui without this route gets one; the stand-ins are such webuis."""
    with running.client() as client:
        assert client.get("/sdapi/v1/hypernetworks").json() == [
            {"name": "ink", "path": "ink.pt"},
            {"name": "wash", "path": "wash.safetensors"},
        ]
    with running.client(api_auth="user:word") as client:
        assert client.get("/sdapi/v1/hypernetworks").status_code == 401


def test_compare_renders_and_the_model_encodes(running: Webui, pages: Host) -> None:
    chosen = ((running.hypernetworks / "ink.pt", Tag("ink", 0.7)),)
    request = ImageRequest("a cat", seed=7, steps=2, width=16, height=16, hypernetworks=chosen)
    assert pages.generator is not None
    image = pages.generator.image(request, lambda step, steps: None)
    assert "Hypernet hashes: " in image.info["parameters"]
    assert running.idle()
    assert pages.lora_base is not None
    program = pages.lora_base()["program"]
    assert program.name == f"{importlib.import_module('hnloader_webui.hosts').detect().name}'s webui"
    assert program.encode("a cat").shape[0] == 2


def test_old_image_is_pasted(running: Webui) -> None:
    fields = running.part("infotext_utils").paste("a cat\nSteps: 2, Hypernet: ink, Hypernet strength: 0.7")
    assert fields["Prompt"] == f"a cat{TAG}"


def test_layers_that_cast_are_not_plain(running: Webui) -> None:
    host = importlib.import_module("hnloader_webui.hosts").detect()
    layer = next(module.to_k for module in running.unet.modules() if hasattr(module, "to_k"))
    assert host.plain_linears()(layer)
    flags = [flag for flag in ("ldm_patched_cast_weights", "parameters_manual_cast") if hasattr(layer, flag)]
    for flag in flags:
        setattr(layer, flag, True)
        layer.weight.data = layer.weight.data.half()
        assert not host.plain_linears()(layer)


def test_unknown_fork_keeps_its_unet_elsewhere(tmp_path: Path) -> None:
    """A fork of AUTOMATIC1111 with diffusers' pipelines."""
    with running_webui(tmp_path / "webui") as webui:
        webui.install()
        save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
        webui.start()
        host = importlib.import_module("hnloader_webui.hosts").detect()
        unet = webui.unet
        webui.shared.sd_model = SimpleNamespace(unet=unet)
        assert host.unet() is unet
        webui.shared.sd_model = SimpleNamespace()
        assert host.unet() is None
