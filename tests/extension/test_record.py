"""Generation parameters of images: what was applied."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

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


def fields_of(webui: Webui, text: str) -> dict[str, Any]:
    fields: dict[str, Any] = webui.part("infotext_utils").parse_generation_parameters(text)
    return fields


def short(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def test_hashes_list_only_what_was_applied(running: Webui) -> None:
    prompt = '<hypernet:ink><hypernet:"wash, gray: v2":0.5><hypernet:wide><hypernet:gone><hypernet:ink:1:stat=1>'
    job = running.generate(f"a{prompt}")
    fields = fields_of(running, job.infotexts[0])
    folder = running.hypernetworks
    ink, wash = short(folder / "ink.pt"), short(folder / "wash, gray: v2.pt")
    assert fields["Hypernet hashes"] == f"ink: {ink}, wash, gray: v2: {wash}"
    assert fields["Hypernet not applied"] == "gone, ink, wide"  # one of the two tags for ink


def test_every_pass_is_recorded(running: Webui) -> None:
    job = running.generate("a<hypernet:ink>", enable_hr=True, hr_prompt='b<hypernet:"wash, gray: v2">')
    assert fields_of(running, job.infotexts[0])["Hypernet hashes"].count(": ") == 3
    job = running.generate("a", enable_hr=True, hr_prompt="b<hypernet:ink><hypernet:gone>")
    fields = fields_of(running, job.infotexts[0])
    assert fields["Hypernet hashes"].startswith("ink: ")
    assert fields["Hypernet not applied"] == "gone"


def test_image_without_hypernetworks_has_no_record(running: Webui) -> None:
    running.generate("a<hypernet:ink>")
    assert "Hypernet" not in running.generate("a").infotexts[0]
