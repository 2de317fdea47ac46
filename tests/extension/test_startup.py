"""Starting and reloading in a webui."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


def image(webui: Webui, prompt: str, **fields: object) -> torch.Tensor:
    return webui.generate(prompt, **fields).images[0]


def test_reload_registers_once_and_keeps_working(running: Webui) -> None:
    tagged = image(running, "a<hypernet:ink>")
    running.reload()
    assert torch.equal(image(running, "a<hypernet:ink>"), tagged)
    assert running.hooks == 0
    assert not running.reports


def test_failing_part_leaves_the_others(
    running: Webui, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    startup = sys.modules["hnloader_webui.startup"]
    monkeypatch.setattr(startup, "PARTS", {"nowhere": object, **startup.PARTS})
    callbacks = running.part("script_callbacks")
    callbacks.clear_callbacks()
    startup.start()
    assert "Could not add nowhere: ModuleNotFoundError" in capsys.readouterr().out
    assert len(callbacks.callbacks["ui_tabs"]) == 1


class Opened:
    """Records the files that Python opens while `paths` is a list. An audit hook cannot be removed."""

    paths: list[str] | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.paths is not None and isinstance(arguments[0], str):
            self.paths.append(arguments[0])


_opened = Opened()


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Return the paths of all files that are opened during the test."""
    if not hasattr(_opened, "added"):
        sys.addaudithook(_opened)
        _opened.added = True
    _opened.paths = []
    yield _opened.paths
    _opened.paths = None


@pytest.mark.slow
def test_start_with_2000_files_opens_few(webui: Webui, opened: list[str]) -> None:
    webui.install()
    good = save_hypernetwork(webui.hypernetworks / "good.pt", ALL_WIDTHS, seed=1).read_bytes()
    for number in range(2000):
        content = b"broken" if number % 40 == 0 else good
        (webui.hypernetworks / f"file-{number:04}{('.pt', '.safetensors', '.hns')[number % 3]}").write_bytes(content)
    opened.clear()
    webui.start()
    webui.tabs()
    page = webui.cards_page
    page.create_html("txt2img")
    webui.reload()
    assert len(webui.shared.hypernetworks) == len(page.items) == 2001
    assert len({path for path in opened if path.startswith(str(webui.hypernetworks))}) <= 100
    opened.clear()
    webui.generate("a<hypernet:good>")
    assert {path for path in opened if path.startswith(str(webui.hypernetworks))} == {
        str(webui.hypernetworks / "good.pt")
    }
