"""Library in a browser, and its handlers without one."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from hnloader.ui import Host
from hnloader.ui.catalog import Catalog
from hnloader.ui.pages.library_page import _Library, tag_text
from hnloader.ui.sidecars import save_values
from tests.support.browsers import card, turn_to


@pytest.mark.slow
def test_lists_searches_and_filters(page: Page) -> None:
    names = page.locator(".hnl-card .hnl-name")
    assert names.all_inner_texts() == ["cut", "download", "halftone", "outline", "ink", "outline copy"]
    for query, found in {"sketches": ["ink", "outline copy"], "sd 1": ["ink"]}.items():
        page.get_by_label("Search").fill(query)
        expect(names).to_have_text(found)
    page.get_by_label("Search").fill("not a word in any file")
    expect(page.locator("#hnl-library").get_by_role("heading")).to_have_text("Nothing found")
    page.get_by_label("Search").fill("")
    expect(names).to_have_count(6)
    for wanted, expected in {
        "duplicates": ["outline", "outline copy"],
        "files with errors": ["cut", "download"],
        "SD 1": ["ink"],
    }.items():
        page.get_by_label("Show").click()
        page.get_by_role("option", name=wanted, exact=True).click()
        expect(names).to_have_text(expected)


@pytest.mark.slow
def test_shows_the_contents_of_a_file(page: Page) -> None:
    card(page, "ink").click()
    details = page.locator("#hnl-detail")
    expect(details.get_by_role("heading")).to_have_text("sketches/ink.pt")
    for text in ("SD 1", "768", "1-0.05-1, relu", "A1111 webui", "SHA-256", "<hypernet:ink:1>"):
        expect(details).to_contain_text(text)
    expect(card(page, "ink")).to_have_attribute("aria-pressed", "true")
    card(page, "outline copy").click()
    expect(details).to_contain_text("Same content\toutline.pt", use_inner_text=True)


@pytest.mark.slow
def test_shows_the_error_of_a_file(page: Page) -> None:
    card(page, "download").click()
    expect(page.locator("#hnl-detail").get_by_role("alert")).to_contain_text("web page")
    expect(page.get_by_role("button", name="Use in Generate")).to_be_hidden()


@pytest.mark.slow
def test_saves_notes_and_finds_them(page: Page, folder: Path) -> None:
    notes = "Best at 0.7 <b>with</b> a plain prompt."
    card(page, "halftone").click()
    page.get_by_label("Notes").fill(notes)
    page.get_by_role("button", name="Save notes").click()
    expect(page.locator("#hnl-library-said").get_by_role("status")).to_contain_text("halftone.json")
    assert "Best at 0.7 <b>with</b>" in (folder / "halftone.json").read_text()
    card(page, "outline").click()
    expect(page.get_by_label("Notes")).to_have_value("")
    card(page, "halftone").click()
    expect(page.get_by_label("Notes")).to_have_value(notes)
    page.get_by_label("Search").fill("plain prompt")
    expect(page.locator(".hnl-card .hnl-name")).to_have_text(["halftone"])


@pytest.mark.slow
def test_saves_and_shows_a_preview(page: Page, folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (600, 400), (10, 200, 30)).save(tmp_path / "mine.png")
    card(page, "halftone").click()
    page.get_by_text("Replace preview").click()
    page.locator("#hnl-detail input[type=file]").set_input_files(tmp_path / "mine.png")
    page.locator("#hnl-detail img").last.wait_for()
    page.get_by_role("button", name="Save as preview").click()
    expect(page.locator("#hnl-library-said").get_by_role("status")).to_contain_text("halftone.preview.png")
    expect(card(page, "halftone").locator("img")).to_be_visible()
    with Image.open(folder / "halftone.preview.png") as saved:
        assert saved.size == (600, 400)


@pytest.mark.slow
def test_shows_markup_in_files_as_text(host_of, server_for, open_page, hostile: Path) -> None:
    page = open_page(server_for(host_of(hostile)).url)
    turn_to(page, "Library")
    hostile_card = card(page, "onerror")
    expect(hostile_card.locator(".hnl-name")).to_have_text("x<img src=q onerror=window.pwned=1>{{value}}${1+1}")
    hostile_card.click()
    details = page.locator("#hnl-detail")
    expect(details).to_contain_text("<script>window.pwned=1</script>x<img src=q onerror=window.pwned=1>{{value}}${1+1}")
    assert page.evaluate("window.pwned") is None


@pytest.mark.slow
def test_works_by_keyboard(page: Page) -> None:
    page.get_by_label("Search").focus()
    page.keyboard.type("outline")
    expect(page.locator(".hnl-card")).to_have_count(2)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('hnl-card')"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#hnl-detail").get_by_role("heading")).to_have_text("outline.pt")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#hnl-detail").get_by_role("heading")).to_have_text("sketches/outline copy.pt")


@pytest.mark.slow
def test_shows_a_thousand_files_by_pages(host_of, server_for, open_page, folder: Path) -> None:
    good, bad = (folder / "sketches" / "ink.pt").read_bytes(), (folder / "download.pt").read_bytes()
    for number in range(1000):
        (folder / f"style {number:04d}.pt").write_bytes(bad if number % 40 == 7 else good)
    page = open_page(server_for(host_of(folder)).url)
    turn_to(page, "Library")
    cards = page.locator(".hnl-card")
    expect(cards).to_have_count(24)
    expect(page.get_by_text("1,006 files", exact=True)).to_be_visible()
    expect(page.get_by_text("page 1 of 42")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("page 2 of 42")).to_be_visible()
    expect(cards.first).to_contain_text("style 0018")
    expect(page.locator("#hnl-library-state")).to_contain_text("27 files")
    page.get_by_label("Search").fill("0999")
    expect(cards).to_have_count(1)
    expect(page.get_by_text("1 of 1,006 files")).to_be_visible()


def test_an_upload_becomes_the_preview_only_if_it_is_an_image(tmp_path: Path) -> None:
    (tmp_path / "ink.pt").write_bytes(b"")
    catalog = Catalog(lambda: [tmp_path])
    page = _Library(Host(folders=lambda: [tmp_path], output=lambda: tmp_path), catalog)
    (entry,) = catalog.entries()
    *_, shown = page.save_preview(entry.key, b"%!PS-Adobe-3.0 EPSF-3.0\n", "", "name", "all files", 1)
    assert 'role="alert"' in shown
    assert [path.name for path in tmp_path.iterdir()] == ["ink.pt"]
    image = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(image, "WEBP")
    *_, shown = page.save_preview(entry.key, image.getvalue(), "", "name", "all files", 1)
    assert "ink.preview.png" in shown
    with Image.open(tmp_path / "ink.preview.png") as saved:
        assert saved.size == (60, 40)


@pytest.mark.parametrize(
    ("weight", "tag"), [(0.6, "<hypernet:ink:0.6>"), (0, "<hypernet:ink:1>"), ("much", "<hypernet:ink:1>")]
)
def test_the_tag_has_the_preferred_strength(tmp_path: Path, weight: object, tag: str) -> None:
    (tmp_path / "ink.pt").write_bytes(b"")
    save_values(tmp_path / "ink.pt", {"preferred weight": weight})
    catalog = Catalog(lambda: [tmp_path])
    assert tag_text(catalog.entries()[0], catalog) == tag
