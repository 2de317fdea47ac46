"""The dialog of a card."""

from __future__ import annotations

import html
from typing import Any

import gradio
import pytest

from hnloader.ui import sidecars
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


@pytest.fixture(params=["1.10", "1.7"])
def running(request: pytest.FixtureRequest, webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Webui:
    """A host with the extension and three files, started; its pages are those of one of its ages."""
    pages = webui.part("ui_extra_networks")
    if request.param == "1.7":
        monkeypatch.setattr(pages, "ExtraNetworksPage", pages.OldExtraNetworksPage)
        webui.shared.opts.data_labels.pop("extra_networks_card_description_is_html")
    webui.install()
    (webui.hypernetworks / "sketches").mkdir(parents=True)
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "wash.safetensors", ALL_WIDTHS, seed=2)
    save_hypernetwork(webui.hypernetworks / "sketches" / "ink.pt", ALL_WIDTHS, seed=3)
    webui.start()
    return webui


def page_of(webui: Webui) -> Any:
    (page,) = (page for page in webui.part("ui_extra_networks").extra_pages if page.title == "Hypernetworks")
    return page


@pytest.fixture
def editor(running: Webui) -> Any:
    """The dialog of a page that has been shown."""
    page_of(running).create_html("txt2img")
    editor = page_of(running).create_user_metadata_editor(None, "txt2img")
    with gradio.Blocks():
        editor.create_ui()
    return editor


def test_dialog_shows_file_and_notes(running: Webui, editor: Any) -> None:
    path = running.hypernetworks / "sketches" / "ink.pt"
    sidecars.save_values(path, {"notes": "from the library", "description": "d", "preferred weight": 0.4})
    name, description, table, _, notes, strength = editor.show("sketches/ink")
    assert (name, description, notes, strength) == ("sketches/ink", "d", "from the library", 0.4)
    assert "sketches/ink.pt" in table
    assert ", ".join(map(str, ALL_WIDTHS)) in table


def test_save_keeps_other_values(running: Webui, editor: Any) -> None:
    path = running.hypernetworks / "ink.pt"
    (running.hypernetworks / "ink.json").write_text('{"sd version": "SD1", "notes": "old"}')
    editor.save("ink", "a description", "new", 0.7)
    assert sidecars.read_notes(path) == "new"
    assert sidecars.read_values(path) == {
        "sd version": "SD1",
        "notes": "new",
        "description": "a description",
        "preferred weight": 0.7,
    }
    card = running.part("ui_extra_networks").get_single_card("hypernetworks", "txt2img", "ink")
    assert "a description" in card
    assert "<hypernet:ink:0.7>" in html.unescape(card)


def test_save_without_changes_writes_nothing(running: Webui, editor: Any) -> None:
    (running.hypernetworks / "ink.txt").write_text("in a text file")
    editor.save("ink", "in a text file", "", 0)
    assert not (running.hypernetworks / "ink.json").exists()


def test_save_refuses_to_overwrite_another_json_file(running: Webui, editor: Any) -> None:
    (running.hypernetworks / "ink.json").write_text("[1, 2]")
    with pytest.raises(gradio.Error):
        editor.save("ink", "a description", "", 0)
    assert (running.hypernetworks / "ink.json").read_text() == "[1, 2]"


def test_dialog_shows_later_changes_of_the_library(running: Webui, editor: Any) -> None:
    path = running.hypernetworks / "ink.pt"
    editor.show("ink")
    sidecars.save_notes(path, "from the library")
    assert editor.show("ink")[4] == "from the library"
