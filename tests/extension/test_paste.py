"""Pasted generation parameters."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gradio
import pytest
import torch

import hnloader
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


@pytest.fixture
def running(webui: Webui) -> Webui:
    """A webui with the extension, two files and one for another model, started."""
    webui.install()
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "wash, gray: v2.pt", ALL_WIDTHS, seed=2)
    save_hypernetwork(webui.hypernetworks / "wide.pt", (12,))
    webui.start()
    return webui


@pytest.fixture
def notes(running: Webui, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages in the corner of the page."""

    shown: list[str] = []
    monkeypatch.setattr(gradio, "Warning", shown.append)
    return shown


def short(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


@pytest.fixture
def renamed(running: Webui) -> str:
    """Return the hash of 2022 of a renamed file that is large enough for one."""
    save_hypernetwork(running.hypernetworks / "renamed.pt", (*ALL_WIDTHS, 400), seed=5)
    legacy = hnloader.inspect(running.hypernetworks / "renamed.pt").legacy_hash
    assert legacy != hnloader.inspect(running.hypernetworks / "ink.pt").legacy_hash
    return legacy


def test_pasted_parameters_reproduce_the_image(running: Webui, notes: list[str]) -> None:
    first = running.generate("a<hypernet:ink:0.7:start=0.2>")
    fields = running.part("infotext_utils").paste(first.infotexts[0])
    assert torch.equal(running.generate(fields["Prompt"]).images[0], first.images[0])
    assert notes == []


def test_paste_reports_another_file_with_the_same_name(running: Webui, notes: list[str]) -> None:
    text = running.generate('a<hypernet:ink><hypernet:"wash, gray: v2">').infotexts[0]
    before = short(running.hypernetworks / "ink.pt")
    save_hypernetwork(running.hypernetworks / "ink.pt", ALL_WIDTHS, seed=9)
    running.part("infotext_utils").paste(text)
    (note,) = notes
    assert "'ink'" in note
    assert before in note
    assert short(running.hypernetworks / "ink.pt") in note
    (running.hypernetworks / "ink.pt").unlink()
    notes.clear()
    running.part("infotext_utils").paste(text)
    assert notes == []  # the job says that there is none


@pytest.mark.parametrize("name", ["ink", "ink({hash})"])
def test_fields_of_an_old_image_become_a_tag(name: str, running: Webui, notes: list[str]) -> None:
    legacy = hnloader.inspect(running.hypernetworks / "ink.pt").legacy_hash
    old = f"a cat\nSteps: 4, Hypernet: {name.format(hash=legacy)}, Hypernet strength: 0.7"
    fields = running.part("infotext_utils").paste(old)
    assert fields["Prompt"] == "a cat<hypernet:ink:0.7>"
    assert notes == []
    fields = running.part("infotext_utils").paste("a cat\nSteps: 4, Hypernet: ink")
    assert fields["Prompt"] == "a cat<hypernet:ink:1>"


def test_paste_reports_another_file_for_an_old_image(running: Webui, notes: list[str]) -> None:
    running.part("infotext_utils").paste("a cat\nSteps: 4, Hypernet: ink(0123abcd), Hypernet strength: 1")
    running.part("infotext_utils").paste("a cat\nSteps: 4, Hypernet: ink, Hypernet hash: 0123abcd")
    assert len(notes) == 2
    assert all("0123abcd" in note for note in notes)


@pytest.mark.parametrize("old", ["ink, Hypernet hash: {}", "ink({})", "net-60000({})", "gone, Hypernet hash: {}"])
def test_hash_of_an_old_image_finds_the_file(old: str, renamed: str, running: Webui, notes: list[str]) -> None:
    fields = running.part("infotext_utils").paste(
        f"a cat\nSteps: 4, Hypernet: {old.format(renamed)}, Hypernet strength: 0.7"
    )
    assert fields["Prompt"] == "a cat<hypernet:renamed:0.7>"
    assert notes == []


def test_tag_with_a_hash_finds_the_file(renamed: str, running: Webui) -> None:
    tagged = running.generate("a<hypernet:renamed:0.7>").images[0]
    assert torch.equal(running.generate(f"a<hypernet:net-60000({renamed}):0.7>").images[0], tagged)
    assert torch.equal(running.generate(f"a<hypernet:ink({renamed}):0.7:0.5>").images[0], tagged)


def test_tag_with_an_unknown_hash_finds_the_name(running: Webui) -> None:
    tagged = running.generate("a<hypernet:ink:0.7>").images[0]
    assert torch.equal(running.generate("a<hypernet:ink(0123abcd):0.7>").images[0], tagged)


@pytest.mark.parametrize("strength", ["much", "nan", "1.0>"])
def test_invalid_strength_of_an_old_image_is_kept(strength: str, running: Webui, notes: list[str]) -> None:
    fields = running.part("infotext_utils").paste(
        f"a\nSteps: 4, Hypernet: ink(0123abcd), Hypernet strength: {strength}"
    )
    assert fields["Prompt"] == f"a<hypernet:ink(0123abcd):{strength}>"
    assert running.reports == []
