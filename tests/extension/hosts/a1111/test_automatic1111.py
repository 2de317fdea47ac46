"""The capabilities of AUTOMATIC1111 and Forge."""

from __future__ import annotations

import pytest
import torch

from hnloader.ui import Host
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


def image(webui: Webui, prompt: str, **fields: object) -> torch.Tensor:
    return webui.generate(prompt, **fields).images[0]


def test_own_list_includes_safetensors(running: Webui) -> None:
    save_hypernetwork(running.hypernetworks / "new.safetensors", ALL_WIDTHS)
    running.shared.reload_hypernetworks()
    assert running.shared.hypernetworks["new"] == str(running.hypernetworks / "new.safetensors")
    assert not torch.equal(image(running, "a<hypernet:new>"), image(running, "a"))


def test_own_list_includes_new_files(running: Webui, pages: Host) -> None:
    (running.hypernetworks / "late.safetensors").write_bytes(b"")
    pages.on_change()
    assert "late" in running.shared.hypernetworks


def test_failing_tab_leaves_the_rest(
    running: Webui, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(host: Host) -> None:
        raise AttributeError("no Blocks")

    monkeypatch.setattr("hnloader_webui.tab.build", fail)
    assert running.tabs() == []
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "tab" in line)
    assert "AttributeError: no Blocks" in line
    assert running.reports == []
