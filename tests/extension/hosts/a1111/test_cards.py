"""Cards of the extra networks."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from extension.host_library import HostLibrary
from hnloader.embeddings import Embedding, save_embedding
from hnloader.ui import sidecars
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


def names(webui: Webui) -> list[str]:
    return [html.unescape(name) for name in re.findall(r'data-name="([^"]*)"', webui.cards_page.create_html("txt2img"))]


def added(webui: Webui, name: str) -> str:
    """The JavaScript for the text that a click on a card adds."""
    webui.cards_page.create_html("txt2img")
    text: str = webui.cards_page.items[name]["prompt"]
    return text


def test_page_replaces_the_webui_s_own(with_cards: Webui) -> None:
    titles = [page.title for page in with_cards.part("ui_extra_networks").extra_pages]
    own = ["Textual Inversion", "Hypernetworks", "Checkpoints"]
    assert titles == (["Textual Inversion", "Checkpoints", "Hypernetworks"] if with_cards.forge else own)
    with_cards.reload()
    assert [page.title for page in with_cards.part("ui_extra_networks").extra_pages] == titles
    assert with_cards.reports == []


def test_two_formats_of_a_file_share_a_card(with_cards: Webui) -> None:
    assert sorted(names(with_cards)) == ["ink", "sketches/ink", "wash"]
    save_hypernetwork(with_cards.hypernetworks / "ink.safetensors", ALL_WIDTHS, seed=1)
    (with_cards.hypernetworks / "both.hns").write_text('{"items": [["ink", 1.0], ["wash", 0.5]]}')
    with_cards.cards_page.refresh()
    assert sorted(names(with_cards)) == ["both", "ink", "sketches/ink", "wash"]
    assert with_cards.cards_page.items["ink"]["filename"] == str(with_cards.hypernetworks / "ink.safetensors")


def test_click_adds_the_tag_with_the_preferred_strength(with_cards: Webui) -> None:
    assert added(with_cards, "ink") == '"<hypernet:ink:" + (opts.extra_networks_default_multiplier ?? 1) + ">"'
    assert added(with_cards, "sketches/ink").startswith('"<hypernet:sketches/ink:"')
    (with_cards.hypernetworks / "ink.json").write_text('{"preferred weight": 0.65, "sd version": "SD1"}')
    assert added(with_cards, "ink") == '"<hypernet:ink:0.65>"'
    for nothing in ("0", '"much"', "true", "1e999", "null"):
        (with_cards.hypernetworks / "ink.json").write_text(f'{{"preferred weight": {nothing}}}')
        assert "default_multiplier" in added(with_cards, "ink")


def test_tag_of_a_card_is_applied(with_cards: Webui) -> None:
    (with_cards.hypernetworks / "wash.json").write_text('{"preferred weight": 0.5}')
    job = with_cards.generate(f"a{json.loads(added(with_cards, 'wash'))}")
    assert "Hypernet hashes: " in job.infotexts[0]


def test_preview_and_description(with_cards: Webui) -> None:
    path = with_cards.hypernetworks / "ink.pt"
    saved = sidecars.save_preview(path, Image.new("RGB", (8, 8), "red"))
    sidecars.save_values(path, {"description": "for drawings <b>"})
    shown = with_cards.cards_page.create_html("txt2img")
    assert f"thumb?filename={saved}" in shown
    assert "for drawings &lt;b&gt;" in shown
    assert with_cards.cards_page.items["ink"]["local_preview"] == str(saved)
    assert with_cards.cards_page.items["wash"]["local_preview"] == str(with_cards.hypernetworks / "wash.preview.png")
    assert str(with_cards.hypernetworks) in with_cards.part("ui_extra_networks").allowed_dirs


def test_description_in_a_text_file(with_cards: Webui) -> None:
    (with_cards.hypernetworks / "ink.txt").write_text("in a text file")
    assert "in a text file" in with_cards.cards_page.create_html("txt2img")


@pytest.mark.parametrize("content", ["[]", "{", "3", '{"description": 5, "notes": [1], "preferred weight": {}}'])
def test_any_json_file_is_accepted(content: str, with_cards: Webui) -> None:
    (with_cards.hypernetworks / "ink.json").write_text(content)
    assert sorted(names(with_cards)) == ["ink", "sketches/ink", "wash"]
    assert with_cards.part("ui_extra_networks").get_single_card("hypernetworks", "txt2img", "ink")


def test_names_with_html_have_no_card(with_cards: Webui) -> None:
    for name in ("a<img src=x onerror=alert(1)>.pt", 'b" onmouseover="alert(1).pt', "d'e & f.pt"):
        save_hypernetwork(with_cards.hypernetworks / name, ALL_WIDTHS)
    with_cards.cards_page.refresh()
    assert sorted(names(with_cards)) == ["d'e & f", "ink", "sketches/ink", "wash"]
    assert "<img" not in with_cards.cards_page.create_html("txt2img")


def test_names_with_quotes_have_no_card_in_1_8(with_cards: Webui) -> None:
    with_cards.cards_page.btn_copy_path_tpl = "copy(event, '{filename}')"  # 1.8
    save_hypernetwork(with_cards.hypernetworks / "d');alert('1.pt", ALL_WIDTHS)
    with_cards.cards_page.refresh()
    assert sorted(names(with_cards)) == ["ink", "sketches/ink", "wash"]


def test_metadata_button_shows_the_header_without_folders(with_cards: Webui) -> None:
    (with_cards.hypernetworks / "page.pt").write_text("<!DOCTYPE html><html></html>")
    with_cards.cards_page.refresh()
    assert with_cards.cards_page.create_html("txt2img").count("<i>metadata</i>") == 4
    pages = with_cards.part("ui_extra_networks")
    details = json.loads(pages.get_metadata("hypernetworks", "sketches/ink")["metadata"])
    assert details["widths"] == ", ".join(map(str, ALL_WIDTHS))  # the page collapses lists
    assert details["path"] == "sketches/ink.pt"
    assert "web page" in json.loads(pages.get_metadata("hypernetworks", "page")["metadata"])["problem"]
    assert pages.get_metadata("hypernetworks", "../ink") == {}


def test_page_opens_each_hypernetwork_once(with_cards: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    names(with_cards)
    opened = []

    def watched(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(path).suffix)
        return open(path, *args, **kwargs)  # noqa: PTH123

    monkeypatch.setattr("hnloader.files.open", watched, raising=False)
    monkeypatch.setattr("hnloader.ui.catalog.inspect", lambda path, *given: opened.append(path.name))
    names(with_cards)
    with_cards.cards_page.refresh()
    names(with_cards)
    assert set(opened) <= {".json", ".txt"}


def test_an_embedding_among_hypernetworks_is_named(with_cards: Webui) -> None:
    for name in ("word.pt", "word.bin", "picture.png"):
        save_embedding(Embedding(torch.zeros(2, 768)), with_cards.hypernetworks / name)
    with_cards.cards_page.refresh()
    items = {item["name"]: item for item in with_cards.cards_page.list_items()}
    assert items["word"]["description"].startswith("Cannot be used: word.pt is a textual-inversion embedding")
    assert "embeddings folder" in items["word"]["description"]
    assert "picture" not in items  # a prompt's tag cannot name it
    assert items["ink"]["description"].startswith("For ")


def test_card_shows_the_model_and_what_cannot_be_used(with_cards: Webui) -> None:
    save_hypernetwork(with_cards.hypernetworks / "photo.pt", (768, 320))
    (with_cards.hypernetworks / "page.pt").write_text("<!DOCTYPE html><html></html>")
    with_cards.cards_page.refresh()
    items = {item["name"]: item for item in with_cards.cards_page.list_items()}
    assert items["photo"]["description"] == "For SD 1"
    assert "For SD 1" in items["photo"]["search_terms"][0]
    assert items["page"]["description"].startswith("Cannot be used: page.pt")
    assert str(with_cards.folder) not in items["page"]["description"]
    save_hypernetwork(with_cards.hypernetworks / "page.pt", (1024,))
    items = {item["name"]: item for item in with_cards.cards_page.list_items()}
    assert items["page"]["description"] == "For SD 2"


def test_deleted_file_leaves_the_others(with_cards: Webui) -> None:
    assert "ink" in names(with_cards)
    (with_cards.hypernetworks / "ink.pt").unlink()
    assert sorted(names(with_cards)) == ["sketches/ink", "wash"]


def test_refresh_shows_new_files(with_cards: Webui) -> None:
    save_hypernetwork(with_cards.hypernetworks / "late.safetensors", ALL_WIDTHS)
    with_cards.cards_page.refresh()
    assert "late" in names(with_cards)


def test_names_outside_utf8_have_no_card(with_cards: Webui) -> None:
    """The webuis send one page of all cards, and one answer with all names."""
    odd = with_cards.hypernetworks / "odd\udcff.pt"
    try:
        (with_cards.hypernetworks / "wash.safetensors").rename(odd)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names in UTF-8 alone")
    odd.with_suffix(".json").write_text(json.dumps({"description": "\ud800"}))
    page = with_cards.cards_page
    page.refresh()
    assert names(with_cards) == ["ink", "sketches/ink"]
    assert page.create_html("txt2img").encode("utf-8")
    with_cards.shared.reload_hypernetworks()
    assert json.dumps(with_cards.shared.hypernetworks, ensure_ascii=False).encode("utf-8")
    library = HostLibrary(lambda: [with_cards.hypernetworks])
    assert set(library.names()) == {"ink", "odd\\udcff"}  # what the panel and the plot offer
    assert library.find("odd\\udcff").path == odd
