"""The dialog of a card."""

from __future__ import annotations

import html
from typing import Any

import gradio
import pytest

from hnloader.ui import sidecars
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui


@pytest.fixture
def editor(with_cards: Webui) -> Any:
    """The dialog of a page that has been shown."""
    with_cards.cards_page.create_html("txt2img")
    editor = with_cards.cards_page.create_user_metadata_editor(None, "txt2img")
    with gradio.Blocks():
        editor.create_ui()
    return editor


def test_dialog_shows_file_and_notes(with_cards: Webui, editor: Any) -> None:
    path = with_cards.hypernetworks / "sketches" / "ink.pt"
    sidecars.save_values(path, {"notes": "from the library", "description": "d", "preferred weight": 0.4})
    name, description, table, _, notes, strength = editor.show("sketches/ink")
    assert (name, description, notes, strength) == ("sketches/ink", "d", "from the library", 0.4)
    assert "sketches/ink.pt" in table
    assert ", ".join(map(str, ALL_WIDTHS)) in table


def test_no_default_goes_into_the_webui_s_file(editor: Any) -> None:
    assert editor.strength.do_not_save_to_config
    assert editor.edit_notes.do_not_save_to_config


def test_save_keeps_other_values(with_cards: Webui, editor: Any) -> None:
    path = with_cards.hypernetworks / "ink.pt"
    (with_cards.hypernetworks / "ink.json").write_text('{"sd version": "SD1", "notes": "old"}')
    editor.save("ink", "a description", "new", 0.7)
    assert sidecars.read_notes(path) == "new"
    assert sidecars.read_values(path) == {
        "sd version": "SD1",
        "notes": "new",
        "description": "a description",
        "preferred weight": 0.7,
    }
    card = with_cards.part("ui_extra_networks").get_single_card("hypernetworks", "txt2img", "ink")
    assert "a description" in card
    assert "<hypernet:ink:0.7>" in html.unescape(card)


def test_save_without_changes_writes_nothing(with_cards: Webui, editor: Any) -> None:
    (with_cards.hypernetworks / "ink.txt").write_text("in a text file")
    editor.save("ink", "in a text file", "", 0)
    assert not (with_cards.hypernetworks / "ink.json").exists()


def test_save_refuses_to_overwrite_another_json_file(with_cards: Webui, editor: Any) -> None:
    (with_cards.hypernetworks / "ink.json").write_text("[1, 2]")
    with pytest.raises(gradio.Error):
        editor.save("ink", "a description", "", 0)
    assert (with_cards.hypernetworks / "ink.json").read_text() == "[1, 2]"


def test_dialog_shows_later_changes_of_the_library(with_cards: Webui, editor: Any) -> None:
    path = with_cards.hypernetworks / "ink.pt"
    editor.show("ink")
    sidecars.save_notes(path, "from the library")
    assert editor.show("ink")[4] == "from the library"
