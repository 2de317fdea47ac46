"""Drive the pages as a webui shows them, in the gradio of the running Python.

    make webui-gradio

runs this with the gradio of AUTOMATIC1111's webui (3.41.2) and of Forge (4.40.0), each in its own environment in
.venv-gradio. The host is a stand-in: its generator draws the request instead of sampling.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.demo.drawing import draw_images
from hnloader.errors import CancelledError
from hnloader.ui import Host, ImageRequest, TrainingPlace, build
from hnloader.ui.page_host import Progress
from tests.support.browsers import open_tab, start_chromium

MODEL = pipeline_folder()
# The Python that trains. The webui's may lack what training requires; `make webui-gradio` names the project's.
PYTHON = os.environ.get("HNLOADER_TRAIN_PYTHON", sys.executable)


class DrawingGenerator:
    """Makes images of one color, chosen by the seed and the last hypernetwork's strength."""

    samplers = ("Euler a",)
    default_guidance = 7.0
    applies_embeddings = False

    def __init__(self) -> None:
        self.interrupted = False

    def image(self, request: ImageRequest, progress: Progress) -> Image.Image:
        self.interrupted = False
        strength = request.hypernetworks[-1][1].strength if request.hypernetworks else 0
        for step in range(request.steps):
            if self.interrupted:
                raise CancelledError
            progress(step + 1, request.steps)
            time.sleep(0.01)
        return Image.new("RGB", (64, 64), (int(200 * min(abs(strength), 1)), request.seed % 256, 90))

    def interrupt(self) -> None:
        self.interrupted = True


def make_library(folder: Path) -> Path:
    """Copy the bundled hypernetworks and add a file with an error."""
    folder.mkdir()
    for path in hypernetwork_paths().values():
        shutil.copy(path, folder)
    (folder / "download.pt").write_text("<!DOCTYPE html><html></html>")
    return folder


def serve(folder: Path, output: Path) -> str:
    """Mount the pages as webuis do: as separate Blocks, rendered in a tab of the webui."""
    with gradio.Blocks(analytics_enabled=False) as ours:
        training = TrainingPlace(lambda: output / "trainings", lambda: folder, lambda: [str(MODEL)], None, True)
        build(Host(lambda: [folder], lambda: output, DrawingGenerator(), training=training))
    with gradio.Blocks(analytics_enabled=False) as webui, gradio.Tabs():
        with gradio.Tab("txt2img"):
            gradio.Textbox(label="A webui's prompt")
        with gradio.Tab("Hypernetworks"):
            ours.render()
    webui.queue()
    options: dict[str, Any] = {"prevent_thread_lock": True, "quiet": True, "share": False}
    _, url, _ = webui.launch(server_name="127.0.0.1", **options)
    return str(url)


def drive(page: Page, folder: Path, output: Path) -> None:
    """Use the pages as a user does, one after the other."""
    page.get_by_text("Hypernetworks", exact=True).first.click()
    cards = page.locator(".hnl-card")
    expect(cards).to_have_count(3)
    passed("lists 3 files")
    page.locator("#hnl-search textarea, #hnl-search input").first.fill("outl")
    expect(cards).to_have_count(1)
    cards.first.click()
    expect(page.locator("#hnl-detail").first).to_contain_text("SHA-256")
    expect(page.locator("#hnl-detail").first).to_contain_text("<hypernet:outline:1>")
    page.locator("#hnl-notes textarea").fill("for circles")
    page.get_by_role("button", name="Save notes").click()
    expect(page.locator("#hnl-library-said").first).to_contain_text("Saved in outline.json")
    assert "for circles" in (folder / "outline.json").read_text()
    passed("searches, shows a file, saves notes")

    tab(page, "Compare")
    page.locator("#hnl-compare-prompts textarea").fill("a cat\na dog")
    option(page, "hnl-compare-files", "outline.pt")
    page.locator("#hnl-compare").click()
    expect(page.locator("#hnl-compare-status").first).to_contain_text("Saved as")
    expect(page.locator("#hnl-compare-image img").first).to_be_visible()
    assert len(list(output.glob("compare-*.png"))) == 1
    page.locator("#hnl-compare-prompts textarea").fill("\n".join(["a cat"] * 50))
    page.locator("#hnl-compare").click()
    expect(page.locator("#hnl-compare-status [role=progressbar]").first).to_contain_text("of 150")
    page.locator("#hnl-compare-cancel").click()
    expect(page.locator("#hnl-compare-status").first).to_contain_text("Cancelled")
    passed("compares, cancels")

    tab(page, "Convert")
    page.get_by_text("all files in the library").click()
    page.locator("#hnl-convert").click()
    expect(page.locator("#hnl-convert-status").first).to_contain_text("2 converted")
    assert (folder / "outline.safetensors").is_file()
    passed("converts")

    tab(page, "Train")
    expect(page.locator("#hnl-train-details").first).to_contain_text("No training runs yet")
    write(page, "hnl-train-images", str(draw_images("blueprint", output / "blueprints", count=5)))
    page.locator("#hnl-train-look").click()
    expect(page.locator("#hnl-train-notice").first).to_contain_text("5 images to train on")
    write(page, "hnl-train-name", "blue")
    write(page, "hnl-train-steps", "2000")
    page.get_by_text("More settings", exact=True).click()
    write(page, "hnl-train-more", "previews.every_n_steps: 0\nvalidate_every_n_steps: 2")
    write(page, "hnl-train-python", PYTHON)
    page.locator("#hnl-train").click()
    status = page.locator("#hnl-train-status").first
    expect(status).to_contain_text(re.compile("blue: step [0-9]+ of 2,000, .* left"))
    page.reload()
    page.get_by_text("Hypernetworks", exact=True).first.click()
    tab(page, "Train")
    expect(status).to_contain_text(re.compile("blue: step [0-9]+ of 2,000"))
    page.locator("#hnl-train-stop").click()
    expect(status).to_contain_text("blue: Stopped. Everything is saved.")
    page.locator("#hnl-train-use").click()
    expect(page.locator("#hnl-train-notice").first).to_contain_text("In a prompt: <hypernet:blue:1>")
    assert (folder / "blue.pt").is_file()
    passed("trains in a separate process that survives a reload, stops, copies the result")


def tab(page: Page, name: str) -> None:
    # In 3.41 tabs are plain buttons.
    page.locator("#hnl-tabs button", has_text=name).first.click()


def write(page: Page, elem_id: str, text: str) -> None:
    page.locator(f"#{elem_id} textarea, #{elem_id} input").first.fill(text)
    page.keyboard.press("Tab")


def option(page: Page, elem_id: str, name: str) -> None:
    page.locator(f"#{elem_id} input").first.click()
    page.locator(f"#{elem_id} li, [role=option]").filter(has_text=name).first.click()
    page.keyboard.press("Escape")


def passed(text: str) -> None:
    print(f"gradio {gradio.__version__}: {text}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder, output = make_library(Path(name) / "hypernetworks"), Path(name) / "images"
        browser = start_chromium(playwright)
        page = open_tab(browser, viewport={"width": 1360, "height": 950})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(serve(folder, output))
        try:
            drive(page, folder, output)
        finally:
            if len(sys.argv) > 1:
                page.screenshot(path=sys.argv[1])
        browser.close()
        assert errors == [], errors
    print(f"gradio {gradio.__version__}: all passed", flush=True)
    os._exit(0)  # gradio's threads would keep running


if __name__ == "__main__":
    main()
