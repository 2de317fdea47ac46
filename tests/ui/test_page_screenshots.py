"""The documentation's screenshots of the page.

    HNLOADER_SCREENSHOTS=docs/images pytest tests/ui/test_page_screenshots.py

writes them. Without the variable they go to a temporary folder, and the test checks that they show something.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from hnloader.demo import pipeline_folder
from hnloader.demo.drawing import draw_images
from hnloader.demo.random_styles import draw_styles
from hnloader.ui.page_host import PredictionPlace
from tests.support.album import make_album
from tests.support.browsers import PATIENCE, set_slider

pytestmark = pytest.mark.slow

PROMPTS = [
    "a large red circle in the center on a white background",
    "a large blue star at the top left on a cyan background",
]
SETTINGS = ("validate_every_n_steps: 5", "previews.every_n_steps: 20")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    return make_album(tmp_path / "hypernetworks")


@pytest.fixture
def shoot(tmp_path: Path):
    folder = Path(os.environ.get("HNLOADER_SCREENSHOTS", tmp_path / "shots")).resolve()
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str) -> None:
        page.mouse.move(0, 0)
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(400)  # until nothing is fading
        path = folder / f"ui-{name}.png"
        page.screenshot(path=path)
        with Image.open(path) as image:
            small = image.convert("RGB").resize((136, 95))
            assert len(small.getcolors(small.width * small.height)) > 50

    return take


# Without the variable, one scheme and few steps are enough.
WANTED = "HNLOADER_SCREENSHOTS" in os.environ


@pytest.mark.parametrize("scheme", ["light", "dark"] if WANTED else ["dark"])
def test_screenshots(host_of, server_for, open_page, album: Path, shoot, scheme: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # keeps paths of this machine off the images
    page = open_page(server_for(host_of(Path("hypernetworks"), output=Path("images"))).url, color_scheme=scheme)
    page.get_by_role("tab", name="Library").click()
    expect(page.locator(".hnl-card")).to_have_count(8)
    page.locator(".hnl-card").filter(has_text="outline").click()
    expect(page.locator("#hnl-detail")).to_contain_text("SHA-256")
    shoot(page, f"library-{scheme}")
    _generate(page)
    shoot(page, f"generate-{scheme}")
    _compare(page)
    shoot(page, f"compare-{scheme}")
    page.get_by_role("tab", name="Convert").click()
    page.get_by_label("all files in the library").check()
    page.locator("#hnl-convert").click()
    expect(page.locator("#hnl-convert-status")).to_contain_text("7 converted")
    shoot(page, f"convert-{scheme}")


def test_screenshot_of_a_training(host_of, server_for, open_page, album: Path, shoot, tmp_path, monkeypatch) -> None:
    """A short training of the bundled pipeline, or without the variable only its images."""
    monkeypatch.chdir(tmp_path)
    page = open_page(server_for(host_of(Path("hypernetworks"), output=Path("images"))).url, color_scheme="light")
    draw_images("blueprint", Path("blueprints"), count=12)
    page.get_by_role("tab", name="Train").click()
    for key, value in {"images": "blueprints", "name": "blueprint", "steps": "120"}.items():
        page.locator(f"#hnl-train-{key} textarea, #hnl-train-{key} input").first.fill(value)
    if WANTED:
        _train(page)
    else:
        page.locator("#hnl-train-look").click()
        expect(page.locator("#hnl-train-sheet img")).to_be_visible()
    shoot(page, "train-light")


def test_screenshot_of_a_prediction(host_of, server_for, open_page, shoot, tmp_path, monkeypatch) -> None:
    """The four images of the tutorial."""
    monkeypatch.chdir(tmp_path)
    folder = Path("hypernetworks")
    folder.mkdir()
    host = host_of(folder, output=Path("images"))
    place = PredictionPlace(host.generator.predict, lambda: folder)
    host = replace(host, prediction=place, pages=(*host.pages, "predict"))
    page = open_page(server_for(host).url, color_scheme="light")
    page.get_by_role("tab", name="Predict").click()
    images = draw_styles(tmp_path / "styles", styles=1, images=4, seed=142) / "00000"
    page.locator("#hnl-predict-images input[type=file]").set_input_files(sorted(images.glob("*.png")))
    page.locator("#hnl-predict-name").locator("input, textarea").fill("lime")
    page.locator("#hnl-predict-prompt").locator("input, textarea").fill(PROMPTS[0])
    if not WANTED:
        set_slider(page, "hnl-predict-steps", 2)
    page.locator("#hnl-predict").click()
    expect(page.locator("#hnl-predict-status")).to_contain_text("<hypernet:lime:1>")
    expect(page.locator("#hnl-predict-image img")).to_be_visible()
    shoot(page, "predict-light")


def _train(page: Page) -> None:
    page.locator("#hnl-train-model input").first.fill(str(pipeline_folder()))
    page.locator("#hnl-train-model input").first.press("Enter")
    page.get_by_text("More settings", exact=True).click()
    page.locator("#hnl-train-more textarea").fill("\n".join(SETTINGS))
    page.locator("#hnl-train").click()
    status = page.locator("#hnl-train-status")
    expect(status).to_contain_text(re.compile("step [6-9][0-9] of 120"), timeout=3 * PATIENCE)
    page.get_by_text("More settings", exact=True).click()
    page.locator("#hnl-train-model input").first.fill("models/sd15")  # keeps paths of this machine off the image
    page.locator("#hnl-train-stop").click()
    expect(status).to_contain_text("Stopped")


def _generate(page: Page) -> None:
    page.get_by_role("button", name="Use in Generate").click()
    page.locator("#hnl-prompt textarea").fill(f"{PROMPTS[0]} <hypernet:outline:1>")
    page.locator("#hnl-count input[type=number]").fill("4")
    page.locator("#hnl-steps input[type=number]").fill("20" if WANTED else "2")
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Seed").press("Tab")
    page.locator("#hnl-generate").click()
    expect(page.locator("#hnl-generate-status")).to_contain_text("Saved 4 images")
    expect(page.locator("#hnl-images img")).to_have_count(4)


def _compare(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.locator("#hnl-compare-prompts textarea").fill("\n".join(PROMPTS))
    for name in ("halftone.pt", "outline.pt"):
        page.locator("#hnl-compare-files input").first.click()
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")
    page.locator("#hnl-compare-steps input[type=number]").fill("20" if WANTED else "2")
    page.locator("#hnl-compare-steps input[type=number]").press("Tab")
    page.locator("#hnl-compare").click()
    expect(page.locator("#hnl-compare-status")).to_contain_text("Saved as")
    expect(page.locator("#hnl-compare-image img")).to_be_visible()
