"""Conversion to LoRA with the model of the webui."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import hnloader
from hnloader.conversion.lora import LoraOptions
from hnloader.conversion.lora.bulk_export import LoraExporter
from hnloader.conversion.lora.layer_names import diffusers_name, lora_name
from hnloader.errors import HypernetworkError
from hnloader.network import Architecture, Hypernetwork
from hnloader.ui import Host, jobs
from hnloader.ui.catalog import Catalog
from hnloader.ui.pages import convert_page
from tests.support.standins.unets import ALL_WIDTHS, CrossAttention
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


def save_affine(path: Path) -> Path:
    """A hypernetwork that a LoRA can represent."""
    torch.manual_seed(5)
    made = Hypernetwork.new(ALL_WIDTHS, Architecture((1, 2, 1)), name=path.stem)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.0 if name.endswith("bias") else 0.15))
    hnloader.save(made, path)
    return path


@pytest.fixture
def running(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webui]:
    """A webui without diffusers, with a checkpoint file, the extension and two hypernetworks."""
    webui.install()
    save_affine(webui.hypernetworks / "ink.pt")
    save_hypernetwork(webui.hypernetworks / "relu.pt", ALL_WIDTHS, seed=1)
    webui.start()
    checkpoint = webui.folder / "first.safetensors"
    weights = {f"model.diffusion_model.{name}": tensor for name, tensor in webui.unet.state_dict().items()}
    save_file(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}, checkpoint
    )
    webui.sd_models.settings.filename = str(checkpoint)
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    yield webui
    webui.sd_models.settings.filename = ""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample contexts from as few images as possible."""
    options = LoraOptions(images=5, steps=2)
    monkeypatch.setattr("hnloader.conversion.lora.bulk_export.LoraExporter", partial(LoraExporter, options=options))


def convert(pages: Host, *labels: str, during: Any = lambda: None) -> tuple[str, str]:
    """Convert to LoRA; return the page's status and table."""
    catalog = Catalog(pages.folders)
    catalog.refresh()
    page = convert_page._Convert(pages, catalog)
    updates = []
    for news in page.run("selected files", list(labels), "LoRA", "separate folder", "skip", False):
        updates.append(news)
        during()
    return updates[-1][1], updates[-1][4]


def apply_lora(webui: Webui, path: Path) -> None:
    """Add a LoRA to the weights of the current model."""
    tensors = load_file(path)
    for name, module in webui.unet.named_modules():
        if isinstance(module, CrossAttention):
            for side in ("to_k", "to_v"):
                key = lora_name(str(diffusers_name(f"{name}.{side}", 2)), "diffusers", 2)
                if f"{key}.lora_up.weight" in tensors:
                    up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
                    delta = up @ down * (tensors[f"{key}.alpha"] / down.shape[0])
                    layer = getattr(module, side)
                    changed = (layer.weight.float() + delta).to(layer.weight.dtype)
                    layer.weight = nn.Parameter(changed, requires_grad=False)


@pytest.mark.usefixtures("quick")
def test_lora_is_like_the_hypernetwork_without_diffusers(running: Webui, pages: Host) -> None:
    status, table = convert(pages, "ink.pt")
    assert "1 converted" in status, table
    made = running.folder / "models" / "Lora" / "ink-lora.safetensors"
    with safe_open(made, framework="pt") as opened:
        metadata = opened.metadata()
    name = "Forge" if running.forge else "AUTOMATIC1111"
    assert metadata["hnloader.statistics"].startswith(f"{name}'s webui: text contexts of 60 prompts")
    assert json.loads(metadata["hnloader.base"])["name"] == "first"
    assert running.idle()
    plain, tagged = (running.generate(prompt).images[0] for prompt in ("a", "a<hypernet:ink>"))
    apply_lora(running, made)
    with_lora = running.generate("a").images[0]
    assert (with_lora - tagged).norm() < 0.35 * (tagged - plain).norm()


@pytest.mark.usefixtures("quick")
def test_fidelity_is_reported_for_a_nonlinear_hypernetwork(running: Webui, pages: Host) -> None:
    status, table = convert(pages, "relu.pt")
    assert "1 converted" in status, table
    assert "fidelity" in table
    assert running.idle()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_other_jobs_run_in_between(running: Webui, pages: Host) -> None:
    alone = running.generate("another").images[0]
    others: list[torch.Tensor] = []

    def another() -> None:
        lock = running.part("call_queue").queue_lock
        if len(others) < 5 and lock.acquire(blocking=False):
            others.append(running.generate("another").images[0])
            lock.release()

    status, table = convert(pages, "ink.pt", during=another)
    assert "1 converted" in status, table
    assert others
    assert all(torch.equal(image, alone) for image in others)


def test_another_checkpoint_is_an_error(running: Webui, pages: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    program = pages.lora_base()["program"]
    assert program.unet is running.unet
    running.switch("second")
    with pytest.raises(HypernetworkError):
        program.encode("a")
    assert running.idle()


@pytest.mark.usefixtures("quick")
def test_cancel_leaves_nothing(running: Webui, pages: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    original = jobs.Job.report

    def cancel(self: Any, done: int, total: int, text: str) -> None:
        original(self, done, total, text)
        if "Sampling" in text:
            self.cancel()

    monkeypatch.setattr(jobs.Job, "report", cancel)
    status, _ = convert(pages, "ink.pt")
    assert "Cancelled" in status
    assert list((running.folder / "models" / "Lora").glob("*")) == []
    assert running.idle()


@pytest.mark.parametrize("kind", ["is_sd1", "is_sdxl"])
def test_encode_returns_prompt_and_empty_prompt(kind: str, running: Webui, pages: Host) -> None:
    setattr(running.shared.sd_model, kind, True)
    found = pages.lora_base()["program"].encode("a cat")
    assert torch.equal(found, running.sd_models.conditioning(["a cat", ""]))
