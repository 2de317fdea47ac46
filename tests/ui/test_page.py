"""The whole page in a browser: tabs, phones, first use, screen readers, light and dark."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from hnloader.demo import hypernetwork_paths
from tests.support.browsers import card, turn_to

pytestmark = pytest.mark.slow

TABS = ("Generate", "Library", "Compare", "Convert", "Train")
# Texts and controls that reach beyond the screen, or whose text is cut off.
CUT_OFF = """() => [...document.querySelectorAll('#hnl-root *, #hnl-tabs *')]
    .filter(e => e.offsetParent && e.closest('.visually-hidden, .hnl-scroll, .hnl-hidden') === null)
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1
        || (e.matches('button, label > span, h3, p') && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0
            && getComputedStyle(e).overflow !== 'visible' && getComputedStyle(e).textOverflow !== 'ellipsis'))
    .map(e => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("width", [390, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_reaches_every_tab(host_of, server_for, open_page, folder: Path, width: int, scheme: str) -> None:
    page = open_page(server_for(host_of(folder)).url, width, 844, color_scheme=scheme)
    for name in TABS:
        tab = page.get_by_role("tab", name=name)
        expect(tab).to_be_in_viewport(ratio=0.95)  # a browser may clip a fraction of a pixel
        tab.click()
        expect(tab).to_have_attribute("aria-selected", "true")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT_OFF) == []
    rows = {round(page.get_by_role("tab", name=name).bounding_box()["y"]) for name in TABS}
    assert len(rows) == 1 or width < 390


def test_a_phone_scrolls_to_the_result(host_of, server_for, open_page, folder: Path) -> None:
    page = open_page(server_for(host_of(folder)).url, 390, 844)
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-generate-status")).to_be_in_viewport()
    page.evaluate("window.scrollTo(0, 0)")
    turn_to(page, "Library")
    card(page, "ink").click()
    expect(page.locator("#hnl-detail").get_by_role("heading")).to_be_in_viewport()


def test_an_empty_library_says_what_to_do_next(host_of, server_for, open_page, tmp_path: Path) -> None:
    empty = tmp_path / "nothing"
    empty.mkdir()
    page = open_page(server_for(host_of(empty)).url)
    expected = {
        "Generate": ("No images yet", "Press Generate"),
        "Library": ("No hypernetworks yet", str(empty)),
        "Compare": ("Nothing to compare yet", "Library"),
        "Convert": ("Nothing converted yet", "Library"),
        "Train": ("No training runs yet", "5 to 50 images"),
    }
    for name, (title, advice) in expected.items():
        turn_to(page, name)
        hint = page.locator(".hnl-empty").filter(visible=True)
        expect(hint).to_contain_text(advice)
        expect(hint.get_by_role("heading")).to_have_text(title)
    turn_to(page, "Convert")
    page.get_by_label("all files in the library").check()
    page.locator("#hnl-convert").click()
    expect(page.locator("#hnl-convert-status").get_by_role("alert")).to_be_visible()


def test_a_library_of_bundled_files_says_where_to_put_others(host_of, server_for, open_page, tmp_path: Path) -> None:
    own = tmp_path / "hypernetworks"
    page = open_page(server_for(host_of(own, hypernetwork_paths()["outline"].parent)).url)
    turn_to(page, "Library")
    expect(page.locator("#hnl-library-state")).to_contain_text(str(own))
    own.mkdir()
    shutil.copy(hypernetwork_paths()["outline"], own / "mine.pt")
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator(".hnl-card")).to_have_count(3)
    expect(page.locator("#hnl-library-state")).not_to_contain_text(str(own))


def test_labels_are_those_of_the_webuis(page: Page) -> None:
    expected = {
        "Generate": ("Prompt", "Negative prompt", "Strength", "Sampling steps", "CFG scale", "Seed"),
        "Compare": ("Prompts", "Negative prompt", "Strengths", "Sampling steps", "CFG scale", "Seed"),
        "Convert": ("Format", "Save to", "If the file exists", "skip", "rename", "overwrite"),
    }
    for name, labels in expected.items():
        turn_to(page, name)
        for label in labels:
            expect(page.get_by_text(label, exact=True).filter(visible=True).first).to_be_visible()
    turn_to(page, "Generate")
    expect(page.locator("#hnl-prompt textarea")).to_have_attribute("placeholder", "Describe the image")


def test_every_input_has_a_name_for_screen_readers(page: Page) -> None:
    for name in TABS:
        turn_to(page, name)
        page.wait_for_timeout(200)
        unnamed = page.evaluate(
            """[...document.querySelectorAll('#hnl-root input:not([type=file]), #hnl-root textarea, #hnl-root button')]
            .filter(e => e.offsetParent && !e.labels?.length && !e.ariaLabel && !e.title && !e.innerText.trim())
            .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert unnamed == []


def test_dark_mode_follows_the_system_and_the_button(host_of, server_for, open_page, folder: Path) -> None:
    page = open_page(server_for(host_of(folder)).url, color_scheme="dark")
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    turn_to(page, "Library")
    card(page, "ink").wait_for()
    assert lightness(page, "background-color") < 60
    assert lightness(page, "color") > 180
    page.get_by_role("button", name="Light / dark").click()
    expect(page.locator("body")).not_to_have_class(re.compile("dark"))
    page.wait_for_timeout(300)  # the colors fade
    assert lightness(page, "background-color") > 200
    assert lightness(page, "color") < 80


def lightness(page: Page, prop: str) -> float:
    """Mean of red, green and blue, 0 to 255, of the first card."""
    script = f"getComputedStyle(document.querySelector('.hnl-card')).getPropertyValue('{prop}')"
    numbers = re.findall(r"[\d.]+", page.evaluate(script))
    return sum(map(float, numbers[:3])) / 3
