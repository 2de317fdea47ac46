"""Compare in a browser, with the bundled pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect

from hnloader.embeddings import Embedding, save_embedding
from tests.support.browsers import select, set_slider, turn_to

pytestmark = pytest.mark.slow

CIRCLE = "a large red circle in the center on a white background"


def test_makes_and_saves_a_comparison(page: Page, tmp_path: Path) -> None:
    turn_to(page, "Compare")
    status, prompts = page.locator("#hnl-compare-status"), page.locator("#hnl-compare-prompts textarea")
    expect(prompts).to_have_value(CIRCLE)
    expect(status.get_by_role("heading")).to_have_text("Nothing to compare yet")
    page.locator("#hnl-compare").click()
    expect(status.get_by_role("alert")).to_contain_text("Nothing is selected")
    prompts.fill(f"{CIRCLE}\na large blue star at the top left")
    select(page, "hnl-compare-files", "halftone.pt", "outline.pt")
    set_slider(page, "hnl-compare-steps", 2)
    strengths = page.locator("#hnl-compare-strengths textarea, #hnl-compare-strengths input")
    strengths.fill("0, one")
    strengths.press("Enter")
    expect(status.get_by_role("alert")).to_contain_text("'one'")
    strengths.fill("0, 1")
    expect(page.get_by_text("6 images: 2 by 3")).to_be_visible()
    strengths.press("Enter")
    expect(status).to_contain_text("compare-00001-0.png")
    expect(page.locator("#hnl-compare-image img")).to_be_visible()
    with Image.open(tmp_path / "images" / "compare-00001-0.png") as grid:
        assert grid.width > 3 * 192
        assert grid.height > 2 * 192
        assert "Hypernetworks: halftone.pt, outline.pt" in grid.info["parameters"]


def test_compares_an_embedding(host_of, server_for, open_page, folder: Path, tmp_path: Path) -> None:
    save_embedding(Embedding(torch.randn(2, 112), name="wash"), folder / "wash.bin")
    page = open_page(server_for(host_of(folder)).url)
    turn_to(page, "Compare")
    select(page, "hnl-compare-files", "outline.pt", "wash.bin")
    set_slider(page, "hnl-compare-steps", 2)
    expect(page.get_by_text("4 images: 1 by 4")).to_be_visible()
    page.locator("#hnl-compare").click()
    expect(page.locator("#hnl-compare-status")).to_contain_text("compare-00001-0.png")
    with Image.open(tmp_path / "images" / "compare-00001-0.png") as grid:
        assert grid.width > 4 * 192
        assert "Hypernetworks: outline.pt\nStrengths: 0, 0.5, 1\nEmbeddings: wash.bin" in grid.info["parameters"]


def test_a_cancelled_comparison_keeps_its_complete_rows(page: Page, tmp_path: Path) -> None:
    turn_to(page, "Compare")
    page.locator("#hnl-compare-prompts textarea").fill("\n".join([CIRCLE] * 40))
    select(page, "hnl-compare-files", "outline.pt")
    set_slider(page, "hnl-compare-steps", 2)
    page.locator("#hnl-compare").click()
    expect(page.locator("#hnl-compare-image img")).to_be_visible()  # the first row
    page.locator("#hnl-compare-cancel").click()
    expect(page.locator("#hnl-compare-status")).to_contain_text("Cancelled")
    assert len(list((tmp_path / "images").glob("compare-*.png"))) == 1
