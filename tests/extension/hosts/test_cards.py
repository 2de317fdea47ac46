"""Cards of the extra networks."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from extension.host_library import HostLibrary
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


def test_page_replaces_the_webui_s_own(running: Webui) -> None:
    titles = [page.title for page in running.part("ui_extra_networks").extra_pages]
    own = ["Textual Inversion", "Hypernetworks", "Checkpoints"]
    assert titles == (["Textual Inversion", "Checkpoints", "Hypernetworks"] if running.forge else own)
    running.reload()
    assert [page.title for page in running.part("ui_extra_networks").extra_pages] == titles
    assert running.reports == []


def test_two_formats_of_a_file_share_a_card(running: Webui) -> None:
    assert sorted(names(running)) == ["ink", "sketches/ink", "wash"]
    save_hypernetwork(running.hypernetworks / "ink.safetensors", ALL_WIDTHS, seed=1)
    (running.hypernetworks / "both.hns").write_text('{"items": [["ink", 1.0], ["wash", 0.5]]}')
    page_of(running).refresh()
    assert sorted(names(running)) == ["both", "ink", "sketches/ink", "wash"]
    assert page_of(running).items["ink"]["filename"] == str(running.hypernetworks / "ink.safetensors")


def test_click_adds_the_tag_with_the_preferred_strength(running: Webui) -> None:
    assert added(running, "ink") == '"<hypernet:ink:" + opts.extra_networks_default_multiplier + ">"'
    assert added(running, "sketches/ink").startswith('"<hypernet:sketches/ink:"')
    (running.hypernetworks / "ink.json").write_text('{"preferred weight": 0.65, "sd version": "SD1"}')
    assert added(running, "ink") == '"<hypernet:ink:0.65>"'
    for nothing in ("0", '"much"', "true", "1e999", "null"):
        (running.hypernetworks / "ink.json").write_text(f'{{"preferred weight": {nothing}}}')
        assert "default_multiplier" in added(running, "ink")


def test_tag_of_a_card_is_applied(running: Webui) -> None:
    (running.hypernetworks / "wash.json").write_text('{"preferred weight": 0.5}')
    job = running.generate(f"a{json.loads(added(running, 'wash'))}")
    assert "Hypernet hashes: " in job.infotexts[0]


def test_preview_and_description(running: Webui) -> None:
    path = running.hypernetworks / "ink.pt"
    saved = sidecars.save_preview(path, Image.new("RGB", (8, 8), "red"))
    sidecars.save_values(path, {"description": "for drawings <b>"})
    shown = page_of(running).create_html("txt2img")
    assert f"thumb?filename={saved}" in shown
    assert "for drawings &lt;b&gt;" in shown
    assert page_of(running).items["ink"]["local_preview"] == str(saved)
    assert page_of(running).items["wash"]["local_preview"] == str(running.hypernetworks / "wash.preview.png")
    assert str(running.hypernetworks) in running.part("ui_extra_networks").allowed_dirs


def test_description_in_a_text_file(running: Webui) -> None:
    (running.hypernetworks / "ink.txt").write_text("in a text file")
    assert "in a text file" in page_of(running).create_html("txt2img")


@pytest.mark.parametrize("content", ["[]", "{", "3", '{"description": 5, "notes": [1], "preferred weight": {}}'])
def test_any_json_file_is_accepted(content: str, running: Webui) -> None:
    (running.hypernetworks / "ink.json").write_text(content)
    assert sorted(names(running)) == ["ink", "sketches/ink", "wash"]
    assert running.part("ui_extra_networks").get_single_card("hypernetworks", "txt2img", "ink")


def test_names_with_html_have_no_card(running: Webui) -> None:
    for name in ("a<img src=x onerror=alert(1)>.pt", 'b" onmouseover="alert(1).pt', "d'e & f.pt"):
        save_hypernetwork(running.hypernetworks / name, ALL_WIDTHS)
    page_of(running).refresh()
    assert sorted(names(running)) == ["d'e & f", "ink", "sketches/ink", "wash"]
    assert "<img" not in page_of(running).create_html("txt2img")


def test_names_with_quotes_have_no_card_in_1_8(running: Webui) -> None:
    page_of(running).btn_copy_path_tpl = "copy(event, '{filename}')"  # 1.8
    save_hypernetwork(running.hypernetworks / "d');alert('1.pt", ALL_WIDTHS)
    page_of(running).refresh()
    assert sorted(names(running)) == ["ink", "sketches/ink", "wash"]


def test_metadata_button_shows_the_header_without_folders(running: Webui) -> None:
    (running.hypernetworks / "page.pt").write_text("<!DOCTYPE html><html></html>")
    page_of(running).refresh()
    assert page_of(running).create_html("txt2img").count("<i>metadata</i>") == 4
    pages = running.part("ui_extra_networks")
    details = json.loads(pages.get_metadata("hypernetworks", "sketches/ink")["metadata"])
    assert details["widths"] == ", ".join(map(str, ALL_WIDTHS))  # the page collapses lists
    assert details["path"] == "sketches/ink.pt"
    assert "web page" in json.loads(pages.get_metadata("hypernetworks", "page")["metadata"])["problem"]
    assert pages.get_metadata("hypernetworks", "../ink") == {}


def test_page_opens_no_hypernetwork(running: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def watched(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(path).suffix)
        return open(path, *args, **kwargs)  # noqa: PTH123

    monkeypatch.setattr("hnloader.files.open", watched, raising=False)
    monkeypatch.setattr("hnloader.inspect", lambda *given: opened.append("inspect"))
    names(running)
    assert set(opened) <= {".json", ".txt"}


def test_deleted_file_leaves_the_others(running: Webui) -> None:
    assert "ink" in names(running)
    (running.hypernetworks / "ink.pt").unlink()
    assert sorted(names(running)) == ["sketches/ink", "wash"]


def test_refresh_shows_new_files(running: Webui) -> None:
    save_hypernetwork(running.hypernetworks / "late.safetensors", ALL_WIDTHS)
    page_of(running).refresh()
    assert "late" in names(running)


def test_names_outside_utf8_have_no_card(running: Webui) -> None:
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
    library = HostLibrary(lambda: [running.hypernetworks])
    assert set(library.names()) == {"ink", "odd\\udcff"}  # what the panel and the plot offer
    assert library.find("odd\\udcff").path == odd
