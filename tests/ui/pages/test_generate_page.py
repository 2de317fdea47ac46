"""Generate in a browser, with the bundled pipeline."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from hnloader.infotext import read_infotext
from hnloader.ui.diffusers_generator import BUNDLED
from hnloader.ui.page_host import EXAMPLE_PROMPT
from tests.support.browsers import card, select, set_slider, turn_to

pytestmark = pytest.mark.slow

CIRCLE = "a large red circle in the center on a white background"


def test_the_first_click_makes_an_image(host_of, server_for, open_page, folder: Path, tmp_path: Path) -> None:
    page = open_page(server_for(host_of(folder)).url)
    status = page.locator("#hnl-generate-status")
    expect(page.locator("#hnl-prompt textarea")).to_have_value(CIRCLE)
    expect(status.get_by_role("heading")).to_have_text("No images yet")
    expect(page.locator("#hnl-images")).to_be_hidden()
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-images img")).to_be_visible()
    expect(status.get_by_role("heading")).to_be_hidden()
    (saved,) = (tmp_path / "images").glob("*.png")
    info = read_infotext(saved)
    assert info is not None
    assert info.prompt == CIRCLE


def test_enter_generates_with_a_tag_from_the_library(page: Page, tmp_path: Path) -> None:
    card(page, "outline").click()
    page.get_by_role("button", name="Use in Generate").click()
    prompt = page.locator("#hnl-prompt textarea")
    expect(prompt).to_have_value(f"{CIRCLE} <hypernet:outline:1>")
    prompt.fill(f"{CIRCLE} <hypernet:outline:0.8>")
    set_slider(page, "hnl-steps", 4)
    page.get_by_label("Seed").fill("7")
    prompt.press("Enter")
    expect(page.get_by_text("00001-7.png")).to_be_visible()
    expect(page.locator("#hnl-images img")).to_be_visible()
    expect(page.locator("#hnl-parameters textarea")).to_have_value(re.compile("Steps: 4, .*Seed: 7"))
    info = read_infotext(tmp_path / "images" / "00001-7.png")
    assert info is not None
    assert info.prompt == f"{CIRCLE} <hypernet:outline:0.8>"


def test_adds_a_hypernetwork_to_the_prompt(page: Page) -> None:
    turn_to(page, "Generate")
    page.locator("#hnl-prompt textarea").fill("a cat")
    select(page, "hnl-file", "sketches/outline copy.pt")
    page.get_by_role("button", name="Add to prompt").click()
    expect(page.locator("#hnl-prompt textarea")).to_have_value("a cat <hypernet:outline copy:1>")


def test_generates_again_after_cancelling(page: Page) -> None:
    turn_to(page, "Generate")
    set_slider(page, "hnl-steps", 100)
    set_slider(page, "hnl-count", 16)
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-generate-status").get_by_role("progressbar")).to_contain_text("of 16, step")
    expect(page.locator("#hnl-generate")).to_be_disabled()
    page.locator("#hnl-generate-cancel").click()
    expect(page.locator("#hnl-generate-status")).to_contain_text("Cancelled")
    set_slider(page, "hnl-steps", 2)
    set_slider(page, "hnl-count", 2)
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-generate-status")).to_contain_text("2 images")


@pytest.mark.parametrize(
    ("prompt", "facts"),
    [
        ("a cat <hypernet:outlime:1>", ["'outlime'", "'outline'"]),
        ("a cat <hypernet:outline:much>", ["'much'"]),
        ("a cat <hypernet:ink:1>", ["768"]),
        ("a cat <hypernet:download:1>", ["download.pt"]),
        ("a cat <hypernet:../../etc/passwd:1>", ["../../etc/passwd"]),
    ],
)
def test_reports_an_unusable_tag(page: Page, prompt: str, facts: list[str]) -> None:
    turn_to(page, "Generate")
    page.locator("#hnl-prompt textarea").fill(prompt)
    page.locator("#hnl-generate").click()
    alert = page.locator("#hnl-generate-status").get_by_role("alert")
    for fact in facts:
        expect(alert).to_contain_text(fact)


def test_reports_a_damaged_model_and_uses_another(host_of, server_for, open_page, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{}")
    page = open_page(server_for(host_of(folder, models=(str(tmp_path / "broken"),))).url)
    status, prompt = page.locator("#hnl-generate-status"), page.locator("#hnl-prompt textarea")
    expect(prompt).to_have_value(EXAMPLE_PROMPT)
    set_slider(page, "hnl-steps", 2)
    page.locator("#hnl-generate").click()
    expect(status.get_by_role("alert")).to_contain_text("broken")
    select(page, "hnl-model", BUNDLED)
    expect(status.get_by_role("status")).to_contain_text(BUNDLED)
    expect(prompt).to_have_value(CIRCLE)
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-images img")).to_be_visible()


def test_another_model_keeps_a_prompt_that_the_user_wrote(
    host_of, server_for, open_page, folder: Path, tiny_model: Path
) -> None:
    page = open_page(server_for(host_of(folder, models=(str(tiny_model),))).url)
    page.locator("#hnl-prompt textarea").fill("a cat")
    select(page, "hnl-model", BUNDLED)
    expect(page.locator("#hnl-generate-status").get_by_role("status")).to_contain_text(BUNDLED)
    expect(page.locator("#hnl-prompt textarea")).to_have_value("a cat")
