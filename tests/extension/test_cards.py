"""The cards in the stand-ins: what a page of them shows, adds to the prompt, and writes beside the files."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio
import pytest
from PIL import Image

from extension.runtime import Extension
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


def names(webui: Webui) -> list[str]:
    return [html.unescape(name) for name in re.findall(r'data-name="([^"]*)"', page_of(webui).create_html("txt2img"))]


def added(webui: Webui, name: str) -> str:
    """The JavaScript for the text that a click on a card adds."""
    page_of(webui).create_html("txt2img")
    text: str = page_of(webui).items[name]["prompt"]
    return text


@pytest.fixture
def editor(running: Webui) -> Any:
    """The dialogue of a page that has been shown."""
    page_of(running).create_html("txt2img")
    editor = page_of(running).create_user_metadata_editor(None, "txt2img")
    with gradio.Blocks():
        editor.create_ui()
    return editor


def test_there_is_one_page_in_the_place_of_the_host_s_own(running: Webui) -> None:
    titles = [page.title for page in running.part("ui_extra_networks").extra_pages]
    own = ["Textual Inversion", "Hypernetworks", "Checkpoints"]
    assert titles == (["Textual Inversion", "Checkpoints", "Hypernetworks"] if running.forge else own)
    running.reload()
    assert [page.title for page in running.part("ui_extra_networks").extra_pages] == titles
    assert running.reports == []


def test_each_file_has_a_card_and_two_formats_of_one_have_one(running: Webui) -> None:
    assert sorted(names(running)) == ["ink", "sketches/ink", "wash"]
    save_hypernetwork(running.hypernetworks / "ink.safetensors", ALL_WIDTHS, seed=1)
    (running.hypernetworks / "both.hns").write_text('{"items": [["ink", 1.0], ["wash", 0.5]]}')
    page_of(running).refresh()
    assert sorted(names(running)) == ["both", "ink", "sketches/ink", "wash"]
    assert page_of(running).items["ink"]["filename"] == str(running.hypernetworks / "ink.safetensors")


def test_a_click_adds_the_tag_with_the_host_s_strength_or_the_preferred_one(running: Webui) -> None:
    assert added(running, "ink") == '"<hypernet:ink:" + opts.extra_networks_default_multiplier + ">"'
    assert added(running, "sketches/ink").startswith('"<hypernet:sketches/ink:"')
    (running.hypernetworks / "ink.json").write_text('{"preferred weight": 0.65, "sd version": "SD1"}')
    assert added(running, "ink") == '"<hypernet:ink:0.65>"'
    for nothing in ("0", '"much"', "true", "1e999", "null"):
        (running.hypernetworks / "ink.json").write_text(f'{{"preferred weight": {nothing}}}')
        assert "default_multiplier" in added(running, "ink")


def test_the_tag_of_a_card_is_applied(running: Webui) -> None:
    (running.hypernetworks / "wash.json").write_text('{"preferred weight": 0.5}')
    job = running.generate(f"a{json.loads(added(running, 'wash'))}")
    assert "Hypernet hashes: " in job.infotexts[0]


def test_preview_and_description_are_those_of_the_library(running: Webui) -> None:
    path = running.hypernetworks / "ink.pt"
    saved = sidecars.save_preview(path, Image.new("RGB", (8, 8), "red"))
    sidecars.save_values(path, {"description": "for drawings <b>"})
    shown = page_of(running).create_html("txt2img")
    assert f"thumb?filename={saved}" in shown
    assert "for drawings &lt;b&gt;" in shown
    assert page_of(running).items["ink"]["local_preview"] == str(saved)
    assert page_of(running).items["wash"]["local_preview"] == str(running.hypernetworks / "wash.preview.png")
    assert str(running.hypernetworks) in running.part("ui_extra_networks").allowed_dirs


def test_a_description_in_a_text_file_is_shown(running: Webui) -> None:
    (running.hypernetworks / "ink.txt").write_text("in a text file")
    assert "in a text file" in page_of(running).create_html("txt2img")


@pytest.mark.parametrize("content", ["[]", "{", "3", '{"description": 5, "notes": [1], "preferred weight": {}}'])
def test_no_json_file_breaks_the_page(content: str, running: Webui) -> None:
    (running.hypernetworks / "ink.json").write_text(content)
    assert sorted(names(running)) == ["ink", "sketches/ink", "wash"]
    assert running.part("ui_extra_networks").get_single_card("hypernetworks", "txt2img", "ink")


def test_names_that_would_be_html_of_the_page_have_no_card(running: Webui) -> None:
    for name in ("a<img src=x onerror=alert(1)>.pt", 'b" onmouseover="alert(1).pt', "d'e & f.pt"):
        save_hypernetwork(running.hypernetworks / name, ALL_WIDTHS)
    page_of(running).refresh()
    assert sorted(names(running)) == ["d'e & f", "ink", "sketches/ink", "wash"]
    assert "<img" not in page_of(running).create_html("txt2img")


def test_where_names_stand_in_javascript_those_with_a_quote_have_no_card(running: Webui) -> None:
    page_of(running).btn_copy_path_tpl = "copy(event, '{filename}')"  # 1.8
    save_hypernetwork(running.hypernetworks / "d');alert('1.pt", ALL_WIDTHS)
    page_of(running).refresh()
    assert sorted(names(running)) == ["ink", "sketches/ink", "wash"]


def test_the_metadata_button_shows_what_the_header_holds_without_folders(running: Webui) -> None:
    (running.hypernetworks / "page.pt").write_text("<!DOCTYPE html><html></html>")
    page_of(running).refresh()
    assert page_of(running).create_html("txt2img").count("<i>metadata</i>") == 4
    pages = running.part("ui_extra_networks")
    told = json.loads(pages.get_metadata("hypernetworks", "sketches/ink")["metadata"])
    assert told["widths"] == ", ".join(map(str, ALL_WIDTHS))  # the page folds lists away
    assert told["path"] == "sketches/ink.pt"
    assert "web page" in json.loads(pages.get_metadata("hypernetworks", "page")["metadata"])["problem"]
    assert pages.get_metadata("hypernetworks", "../ink") == {}


def test_showing_the_page_opens_no_hypernetwork(running: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def watched(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(path).suffix)
        return open(path, *args, **kwargs)  # noqa: PTH123

    monkeypatch.setattr("hnloader.files.open", watched, raising=False)
    monkeypatch.setattr("hnloader.inspect", lambda *given: opened.append("inspect"))
    names(running)
    assert set(opened) <= {".json", ".txt"}


def test_the_dialogue_shows_the_file_and_what_was_noted(running: Webui, editor: Any) -> None:
    path = running.hypernetworks / "sketches" / "ink.pt"
    sidecars.save_values(path, {"notes": "from the library", "description": "d", "preferred weight": 0.4})
    name, description, table, _, notes, strength = editor.show("sketches/ink")
    assert (name, description, notes, strength) == ("sketches/ink", "d", "from the library", 0.4)
    assert "sketches/ink.pt" in table
    assert ", ".join(map(str, ALL_WIDTHS)) in table


def test_what_the_dialogue_saves_is_the_library_s_and_keeps_the_rest(running: Webui, editor: Any) -> None:
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


def test_saving_nothing_new_writes_nothing(running: Webui, editor: Any) -> None:
    (running.hypernetworks / "ink.txt").write_text("in a text file")
    editor.save("ink", "in a text file", "", 0)
    assert not (running.hypernetworks / "ink.json").exists()


def test_somebody_else_s_json_file_is_not_overwritten_and_that_is_said(running: Webui, editor: Any) -> None:
    (running.hypernetworks / "ink.json").write_text("[1, 2]")
    with pytest.raises(gradio.Error, match="Rename that file"):
        editor.save("ink", "a description", "", 0)
    assert (running.hypernetworks / "ink.json").read_text() == "[1, 2]"


def test_a_card_that_was_edited_in_the_library_meanwhile_is_not_set_back(running: Webui, editor: Any) -> None:
    path = running.hypernetworks / "ink.pt"
    editor.show("ink")
    sidecars.save_notes(path, "from the library")
    assert editor.show("ink")[4] == "from the library"


def test_a_file_that_vanished_leaves_the_others(running: Webui) -> None:
    assert "ink" in names(running)
    (running.hypernetworks / "ink.pt").unlink()
    assert sorted(names(running)) == ["sketches/ink", "wash"]


def test_files_that_were_added_have_cards_after_refresh(running: Webui) -> None:
    save_hypernetwork(running.hypernetworks / "late.safetensors", ALL_WIDTHS)
    page_of(running).refresh()
    assert "late" in names(running)


def test_a_name_that_is_not_utf8_leaves_page_lists_and_plot_whole(running: Webui) -> None:
    """The webuis send one page of all cards, and one answer with all names."""
    odd = running.hypernetworks / "odd\udcff.pt"
    try:
        (running.hypernetworks / "wash.safetensors").rename(odd)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names in UTF-8 alone")
    odd.with_suffix(".json").write_text(json.dumps({"description": "\ud800"}))
    page = page_of(running)
    page.refresh()
    assert names(running) == ["ink", "sketches/ink"]
    assert page.create_html("txt2img").encode("utf-8")
    running.shared.reload_hypernetworks()
    assert json.dumps(running.shared.hypernetworks, ensure_ascii=False).encode("utf-8")
    extension = Extension(SimpleNamespace(folders=lambda: [running.hypernetworks]))
    assert set(extension.names()) == {"ink", "odd\\udcff"}  # what the panel and the plot offer
    assert extension.find("odd\\udcff") == str(odd)
