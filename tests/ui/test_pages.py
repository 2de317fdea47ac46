"""The pages in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from hnloader.infotext import read_png

pytestmark = pytest.mark.slow

CIRCLE = "a large red circle in the center on a white background"


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def card(page: Page, name: str):
    return page.locator(".hnl-card").filter(has=page.locator(".hnl-name", has_text=name)).first


def set_slider(page: Page, elem_id: str, value: int) -> None:
    page.locator(f"#{elem_id} input[type=number]").fill(str(value))
    page.locator(f"#{elem_id} input[type=number]").press("Tab")


def choose(page: Page, elem_id: str, *labels: str) -> None:
    box = page.locator(f"#{elem_id} input").first
    for label in labels:
        box.click()
        page.get_by_role("option", name=label, exact=True).click()
    page.keyboard.press("Escape")


@pytest.fixture
def page(host_of, server_for, open_page, folder: Path) -> Page:
    page = open_page(server_for(host_of(folder)).url)
    tab(page, "Library")
    expect(page.locator(".hnl-card")).to_have_count(6)
    return page


def test_the_library_lists_searches_sorts_and_filters(page: Page) -> None:
    names = page.locator(".hnl-card .hnl-name")
    assert names.all_inner_texts() == ["cut", "download", "halftone", "outline", "ink", "outline copy"]
    page.get_by_label("Search").fill("sketches")
    expect(names).to_have_text(["ink", "outline copy"])
    page.get_by_label("Search").fill("sd 1")
    expect(names).to_have_text(["ink"])
    page.get_by_label("Search").fill("nothing is called this")
    expect(page.get_by_text("Nothing found")).to_be_visible()
    page.get_by_label("Search").fill("")
    expect(names).to_have_count(6)
    for wanted, expected in {
        "duplicates": ["outline", "outline copy"],
        "bad files": ["cut", "download"],
        "SD 1": ["ink"],
    }.items():
        page.get_by_label("Show").click()
        page.get_by_role("option", name=wanted, exact=True).click()
        expect(names).to_have_text(expected)


def test_a_file_is_shown_with_all_that_it_holds(page: Page, folder: Path) -> None:
    card(page, "ink").click()
    details = page.locator("#hnl-detail")
    expect(details.get_by_role("heading")).to_have_text("sketches/ink.pt")
    for text in ("SD 1", "768", "1-0.05-1, relu", "A1111 webui", "SHA-256", "<hypernet:ink:1>"):
        expect(details).to_contain_text(text)
    expect(card(page, "ink")).to_have_attribute("aria-pressed", "true")
    card(page, "outline copy").click()
    expect(details).to_contain_text("Same content\toutline.pt", use_inner_text=True)


def test_a_bad_file_says_what_is_wrong_with_it(page: Page) -> None:
    card(page, "download").click()
    alert = page.locator("#hnl-detail").get_by_role("alert")
    expect(alert).to_contain_text("This file cannot be used: a web page (HTML)")
    expect(page.get_by_role("button", name="Use in Generate")).to_be_hidden()


def test_notes_are_saved_beside_the_file_and_found_again(page: Page, folder: Path) -> None:
    card(page, "halftone").click()
    page.get_by_label("Notes").fill("Best at 0.7 <b>with</b> a plain prompt.")
    page.get_by_role("button", name="Save notes").click()
    expect(page.get_by_text("Saved in halftone.json, beside the file.")).to_be_visible()
    assert "Best at 0.7 <b>with</b>" in (folder / "halftone.json").read_text()
    card(page, "outline").click()
    expect(page.get_by_label("Notes")).to_have_value("")
    card(page, "halftone").click()
    expect(page.get_by_label("Notes")).to_have_value("Best at 0.7 <b>with</b> a plain prompt.")
    page.get_by_label("Search").fill("plain prompt")
    expect(page.locator(".hnl-card .hnl-name")).to_have_text(["halftone"])


def test_a_preview_is_saved_beside_the_file_and_shown(page: Page, folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (600, 400), (10, 200, 30)).save(tmp_path / "mine.png")
    card(page, "halftone").click()
    page.get_by_text("Change the preview image").click()
    page.locator("#hnl-detail input[type=file]").set_input_files(tmp_path / "mine.png")
    page.locator("#hnl-detail img").last.wait_for()
    page.get_by_role("button", name="Save as preview").click()
    expect(page.get_by_text("Saved as halftone.preview.png, beside the file.")).to_be_visible()
    expect(card(page, "halftone").locator("img")).to_be_visible()
    with Image.open(folder / "halftone.preview.png") as saved:
        assert saved.size == (600, 400)


def test_what_stands_in_files_is_shown_as_text(host_of, server_for, open_page, hostile: Path) -> None:
    page = open_page(server_for(host_of(hostile)).url)
    tab(page, "Library")
    hostile_card = card(page, "onerror")
    expect(hostile_card.locator(".hnl-name")).to_have_text("x<img src=q onerror=window.pwned=1>{{value}}${1+1}")
    hostile_card.click()
    details = page.locator("#hnl-detail")
    expect(details).to_contain_text("<script>window.pwned=1</script>x<img src=q onerror=window.pwned=1>{{value}}${1+1}")
    assert page.evaluate("window.pwned") is None


def test_enter_generates_and_saves_an_image(page: Page, tmp_path: Path) -> None:
    card(page, "outline").click()
    page.get_by_role("button", name="Use in Generate").click()
    prompt = page.locator("#hnl-prompt textarea")
    expect(prompt).to_have_value("<hypernet:outline:1>")
    prompt.fill(f"{CIRCLE} <hypernet:outline:0.8>")
    set_slider(page, "hnl-steps", 4)
    page.get_by_label("Seed").fill("7")
    prompt.press("Enter")
    expect(page.get_by_text("00001-7.png")).to_be_visible()
    expect(page.locator("#hnl-images img")).to_be_visible()
    expect(page.locator("#hnl-parameters textarea")).to_have_value(re.compile("Steps: 4, .*Seed: 7"))
    info = read_png(tmp_path / "images" / "00001-7.png")
    assert info is not None
    assert info.prompt == f"{CIRCLE} <hypernet:outline:0.8>"


def test_a_hypernetwork_is_added_to_the_prompt_by_menu(page: Page) -> None:
    tab(page, "Generate")
    page.locator("#hnl-prompt textarea").fill("a cat")
    choose(page, "hnl-file", "sketches/outline copy.pt")
    page.get_by_role("button", name="Add to the prompt").click()
    expect(page.locator("#hnl-prompt textarea")).to_have_value("a cat <hypernet:outline copy:1>")


def test_a_run_is_cancelled_and_another_one_works(page: Page, tmp_path: Path) -> None:
    tab(page, "Generate")
    page.locator("#hnl-prompt textarea").fill(CIRCLE)
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
    expect(page.locator("#hnl-generate-status")).to_contain_text("Saved 2 images")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a cat <hypernet:outlime:1>", "No hypernetwork is called 'outlime'. Did you mean 'outline'"),
        ("a cat <hypernet:outline:much>", "not a number"),
        ("a cat <hypernet:ink:1>", "768"),
        ("a cat <hypernet:download:1>", "is a web page"),
        ("a cat <hypernet:../../etc/passwd:1>", "found by name"),
    ],
)
def test_a_prompt_that_cannot_be_used_says_why(page: Page, prompt: str, said: str) -> None:
    tab(page, "Generate")
    page.locator("#hnl-prompt textarea").fill(prompt)
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-generate-status").get_by_role("alert")).to_contain_text(said)


def test_a_model_that_cannot_be_loaded_says_so_and_another_can_be_chosen(
    host_of, server_for, open_page, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{}")
    page = open_page(server_for(host_of(folder, models=(str(tmp_path / "broken"),))).url)
    page.locator("#hnl-prompt textarea").fill(CIRCLE)
    set_slider(page, "hnl-steps", 2)
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-generate-status").get_by_role("alert")).to_contain_text("broken cannot be loaded")
    choose(page, "hnl-model", "the bundled pipeline")
    expect(page.locator("#hnl-generate-status")).to_contain_text("The next image is made by the bundled pipeline")
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-generate-status")).to_contain_text("Saved as")


def test_a_comparison_is_made_and_saved(page: Page, tmp_path: Path) -> None:
    tab(page, "Compare")
    page.locator("#hnl-compare").click()
    status = page.locator("#hnl-compare-status")
    expect(status.get_by_role("alert")).to_contain_text("There is no prompt.")
    page.locator("#hnl-compare-prompts textarea").fill(f"{CIRCLE}\na large blue star at the top left")
    choose(page, "hnl-compare-files", "halftone.pt", "outline.pt")
    set_slider(page, "hnl-compare-steps", 2)
    strengths = page.locator("#hnl-compare-strengths textarea, #hnl-compare-strengths input")
    strengths.fill("0, one")
    strengths.press("Enter")
    expect(status.get_by_role("alert")).to_contain_text("'one' is no strength")
    strengths.fill("0, 1")
    expect(page.get_by_text("6 images: 2 by 3")).to_be_visible()
    strengths.press("Enter")
    expect(status).to_contain_text("compare-00001-0.png")
    expect(page.locator("#hnl-compare-image img")).to_be_visible()
    with Image.open(tmp_path / "images" / "compare-00001-0.png") as grid:
        assert grid.width > 3 * 192
        assert grid.height > 2 * 192
        assert "Hypernetworks: halftone.pt, outline.pt" in grid.info["parameters"]


def test_a_cancelled_comparison_keeps_its_complete_rows(page: Page, tmp_path: Path) -> None:
    tab(page, "Compare")
    page.locator("#hnl-compare-prompts textarea").fill("\n".join([CIRCLE] * 40))
    choose(page, "hnl-compare-files", "outline.pt")
    set_slider(page, "hnl-compare-steps", 2)
    page.locator("#hnl-compare").click()
    expect(page.locator("#hnl-compare-image img")).to_be_visible()  # the first row
    page.locator("#hnl-compare-cancel").click()
    expect(page.locator("#hnl-compare-status")).to_contain_text("the rows that were complete are saved")
    assert len(list((tmp_path / "images").glob("compare-*.png"))) == 1


def test_files_are_converted(page: Page, folder: Path) -> None:
    tab(page, "Convert")
    page.locator("#hnl-convert").click()
    status, table = page.locator("#hnl-convert-status"), page.locator("#hnl-convert-table")
    expect(status.get_by_role("alert")).to_contain_text("No file is chosen")
    choose(page, "hnl-convert-files", "sketches/ink.pt")
    page.locator("#hnl-convert").click()
    expect(status).to_contain_text("1 converted")
    assert (folder / "sketches" / "ink.safetensors").is_file()
    page.get_by_label("all files of the library").check()
    page.locator("#hnl-convert").click()
    expect(status).to_contain_text("3 converted")
    expect(table.locator("tbody tr").filter(has_text="download.pt")).to_contain_text("web page")
    tab(page, "Library")
    expect(page.locator(".hnl-card")).to_have_count(6)
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator(".hnl-card")).to_have_count(10)


def test_the_library_is_used_by_keyboard(page: Page) -> None:
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


def test_every_input_has_a_name_for_screen_readers(page: Page) -> None:
    for name in ("Generate", "Library", "Compare", "Convert", "Train"):
        tab(page, name)
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
    tab(page, "Library")
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


def test_an_empty_library_says_what_to_do(host_of, server_for, open_page, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    page = open_page(server_for(host_of(tmp_path / "nothing")).url)
    tab(page, "Library")
    expect(page.get_by_role("heading", name="No hypernetworks yet")).to_be_visible()
    expect(page.locator("#hnl-library")).to_contain_text(str(tmp_path / "nothing"))
    tab(page, "Convert")
    page.get_by_label("all files of the library").check()
    page.locator("#hnl-convert").click()
    expect(page.locator("#hnl-convert-status")).to_contain_text("There was no file to convert")


def test_a_thousand_files_are_shown_by_pages(host_of, server_for, open_page, folder: Path) -> None:
    good, bad = (folder / "sketches" / "ink.pt").read_bytes(), (folder / "download.pt").read_bytes()
    for number in range(1000):
        (folder / f"style {number:04d}.pt").write_bytes(bad if number % 40 == 7 else good)
    page = open_page(server_for(host_of(folder)).url)
    tab(page, "Library")
    cards = page.locator(".hnl-card")
    expect(cards).to_have_count(24)
    expect(page.get_by_text("1,006 files", exact=True)).to_be_visible()
    expect(page.get_by_text("page 1 of 42")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("page 2 of 42")).to_be_visible()
    expect(cards.first).to_contain_text("style 0018")
    expect(page.get_by_text("27 files cannot be used.")).to_be_visible()
    page.get_by_label("Search").fill("0999")
    expect(cards).to_have_count(1)
    expect(page.get_by_text("1 of 1,006 files")).to_be_visible()
