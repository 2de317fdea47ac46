"""Drive the tab 'Hypernetwork tools' beside the panel in a browser, in whatever gradio the running Python has.

    python -m tests.gradio.tab_in_gradio [FOLDER]

`make test` runs this with the installed gradio, `make webui-gradio` with those of AUTOMATIC1111's webui (3.41.2) and of
Forge (4.40.0). The webui is a stand-in (`tests.support.standins`) with the extension, and its images are noise that the
hypernetworks change. With a folder, it writes the screenshots of docs/webui.md there.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.album import make_album
from tests.support.browsers import open_tab, start_chromium
from tests.support.builders import Recipe, make_sides, metadata, tree, write
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui, running

MAJOR = int(gradio.__version__.partition(".")[0])
# Functions of the webuis that the extension's scripts call.
WEBUI_SCRIPT = """
window.gradioApp = () => document;
window.switch_to_txt2img = () =>
    (document.querySelector('#tabs [role=tab]') ?? document.querySelector('#tabs button')).click();
"""


def start(webui: Webui) -> None:
    """Install the extension and three hypernetworks, one of which fits no model."""
    webui.install()
    recipe = Recipe(structure=(1, 2, 1), activation="relu")
    for name, widths in {"ink": ALL_WIDTHS, "wash": ALL_WIDTHS, "narrow": (12,)}.items():
        write(
            webui.hypernetworks / f"{name}.pt", tree(make_sides(recipe, widths), metadata(recipe, "2022-11", name=name))
        )
    (webui.hypernetworks / "download.pt").write_text("<!DOCTYPE html><html></html>")
    webui.start()
    assert webui.reports == []


def serve(webui: Webui) -> str:
    """Serve a webui's page: txt2img with the scripts of extensions, then their tabs."""
    scripts = webui.part("scripts").ScriptRunner(False).alwayson_scripts
    extra = webui.tabs()

    def generate(prompt: str, rows: str) -> tuple[str, str]:
        done = webui.generate(prompt, alwayson_scripts={"Hypernetworks": [rows]})
        return done.infotexts[0], done.comments

    with gradio.Blocks(analytics_enabled=False) as page, gradio.Tabs(elem_id="tabs"):
        with gradio.Tab("txt2img", id="txt2img"), gradio.Row():
            with gradio.Column(scale=3):
                prompt = gradio.Textbox(label="Prompt", lines=2, elem_id="txt2img_prompt")
                (rows,) = (value for script in scripts for value in script.ui(False))
            with gradio.Column(scale=2):
                button = gradio.Button("Generate", elem_id="txt2img_generate", variant="primary")
                infotext = gradio.Textbox(label="Parameters", elem_id="txt2img_infotext")
                comments = gradio.Textbox(label="Messages", elem_id="txt2img_comments")
                button.click(generate, [prompt, rows], [infotext, comments])
        for tab, title, name in extra:
            with gradio.Tab(title, id=name, elem_id=f"tab_{name}"):
                tab.render()
    page.queue()
    options: dict[str, Any] = {"prevent_thread_lock": True, "quiet": True, "share": False}
    _, url, _ = page.launch(server_name="127.0.0.1", **options)
    return str(url)


def drive(page: Page, webui: Webui) -> None:
    """Use the tab as a user does."""
    panel = page.locator("#hnl_txt2img_panel")
    panel.get_by_text("Apply hypernetworks").first.click()
    panel.get_by_role("button", name="Hypernetwork tools").click()
    cards = page.locator(".hnl-card")
    expect(cards).to_have_count(4)
    expect(page.get_by_text("Or add it to Apply hypernetworks")).to_be_visible()
    expect(page.locator("#hnl-library-state").first).to_contain_text("1 file cannot be used")
    page.locator("#hnl-search textarea, #hnl-search input").first.fill("wash")
    expect(cards).to_have_count(1)
    cards.first.click()
    expect(page.locator("#hnl-detail").first).to_contain_text("SHA-256")
    report("lists, searches, shows a file")

    turn_to(page, "txt2img")
    prompt = page.locator("#txt2img_prompt textarea")
    prompt.fill("a cat")
    turn_to(page, "Hypernetwork tools")
    page.locator("#hnl-use").click()
    expect(prompt).to_be_visible()
    expect(prompt).to_have_value("a cat <hypernet:wash:1>")
    page.locator("#txt2img_generate").click()
    infotext = page.locator("#txt2img_infotext textarea, #txt2img_infotext input").first
    expect(infotext).to_have_value(re.compile('Hypernet hashes: "wash'))
    report("sends a file to the prompt, and a job applies it")

    turn_to(page, "Hypernetwork tools")
    compare(page, webui)
    turn_to(page, "Convert", "#hnl-tabs")
    page.get_by_text("all files in the library").click()
    page.locator("#hnl-convert").click()
    expect(page.locator("#hnl-convert-status").first).to_contain_text("3 converted")
    assert (webui.hypernetworks / "ink.safetensors").is_file()
    assert webui.shared.hypernetworks["wash"].endswith("wash.safetensors")
    report("converts")
    assert webui.reports == [], webui.reports


def compare(page: Page, webui: Webui) -> None:
    made = webui.part("processing").made
    turn_to(page, "Compare", "#hnl-tabs")
    page.locator("#hnl-compare-prompts textarea").fill("a cat\na dog")
    choose(page, "ink.pt")
    page.get_by_text("Sampler, size").click()
    page.get_by_label("Height").wait_for()
    page.wait_for_timeout(1000)  # gradio 6 gives fields that it has just shown their first values again
    for label in ("Width", "Height"):
        page.get_by_label(label).fill("64")
        page.get_by_label(label).press("Tab")
    page.locator("#hnl-compare").click()
    status = page.locator("#hnl-compare-status").first
    expect(status).to_contain_text("Saved as")
    expect(page.locator("#hnl-compare-image img").first).to_be_visible()
    tags = ("", " <hypernet:ink:0.5>", " <hypernet:ink:1>")
    assert [job.prompt for job in made] == [f"{prompt}{tag}" for prompt in ("a cat", "a dog") for tag in tags]
    settings = {(job.seed, job.steps, job.width, job.height) for job in made}
    assert settings == {(0, 20, 64, 64)}, settings
    assert len(list((webui.folder / "output").glob("compare-*.png"))) == 1
    report("compares by jobs of the webui")

    page.locator("#hnl-compare-prompts textarea").fill("\n".join(["a cat"] * 100))
    page.locator("#hnl-compare").click()
    expect(page.locator("#hnl-compare-status [role=progressbar]").first).to_contain_text("of 300")
    page.locator("#hnl-compare-cancel").click()
    expect(status).to_contain_text("Cancelled")
    assert len(made) < 300
    lock = webui.part("call_queue").queue_lock
    with lock:  # as a job of the page would
        page.locator("#hnl-compare").click()
        expect(page.locator("#hnl-compare-status [role=progressbar]").first).to_contain_text("step 0 of 20")
        page.locator("#hnl-compare-cancel").click()
        expect(status).to_contain_text("Cancelled")
    assert lock.comes_to_rest()
    report("cancels, also while it waits for another job")

    page.locator("#hnl-compare-prompts textarea").fill("a cat")
    choose(page, "narrow.pt")
    page.locator("#hnl-compare").click()
    expect(status).to_contain_text("'narrow' was not applied")
    report("reports a file that does not fit the model")


def take_images(browser: Browser, url: str, webui: Webui, folder: Path) -> None:
    """Write the screenshots of docs/webui.md, before the first job: the files do not fit the stand-in's model."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in webui.hypernetworks.iterdir():
        path.unlink()
    make_album(webui.hypernetworks)
    webui.shared.sd_model = None
    page = open_tab(browser, viewport={"width": 1200, "height": 800}, color_scheme="light")
    page.add_init_script(path=ROOT / "javascript" / "hypernetworks_panel.js")
    page.goto(url)
    add = page.locator("#hnl_txt2img_add")
    if not add.is_visible():
        page.locator("#hnl_txt2img_panel").get_by_text("Apply hypernetworks").first.click()
    values = ({"name": "watercolor", "strength": "0.8"}, {"name": "outline", "block": "up", "start": "0.2"})
    for number, fields in enumerate(values):
        add.click()
        for name, value in fields.items():
            row = page.locator("#hnl_txt2img_panel .hnl-panel-row").nth(number)
            field = row.locator(f"[name={name}]").first
            if not field.is_visible():
                row.locator("summary").click()
            field.fill(value)
            field.press("Tab")
    expect(page.locator("#hnl_txt2img_state code")).to_contain_text("start=0.2")
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.locator("#hnl_txt2img_panel").screenshot(path=folder / "webui-panel.png")
    turn_to(page, "Hypernetwork tools")
    page.locator(".hnl-card").filter(has_text="outline").first.click()
    expect(page.locator("#hnl-detail").first).to_contain_text("SHA-256")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # let animations finish
    page.screenshot(path=folder / "webui-tab.png")


def turn_to(page: Page, title: str, tabs: str = "#tabs") -> None:
    # In 3.41 tabs are plain buttons.
    kind = "button" if MAJOR < 4 else "[role=tab]"
    page.locator(f"{tabs} {kind}", has_text=title).first.click()


def choose(page: Page, name: str) -> None:
    page.locator("#hnl-compare-files input").first.click()
    page.locator("#hnl-compare-files li, [role=option]").filter(has_text=name).first.click()
    page.keyboard.press("Escape")


def report(text: str) -> None:
    print(f"gradio {gradio.__version__}: {text}", flush=True)


def main() -> None:
    images = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    started = time.monotonic()
    family = "forge" if MAJOR >= 4 else "a1111"
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        browser = start_chromium(playwright)
        if images is not None:
            with running(Path(name) / "album", family) as webui:
                start(webui)
                take_images(browser, serve(webui), webui, images)
        with running(Path(name) / "webui", family) as webui:
            start(webui)
            use(browser, webui)
        browser.close()
    print(f"gradio {gradio.__version__}: the tab passed in {time.monotonic() - started:.0f} s", flush=True)
    os._exit(0)  # gradio's threads would keep running


def use(browser: Browser, webui: Webui) -> None:
    page = open_tab(browser, viewport={"width": 1360, "height": 950})
    page.add_init_script(WEBUI_SCRIPT)
    # A webui loads the scripts in the folder `javascript` of each extension.
    page.add_init_script(path=ROOT / "javascript" / "hypernetworks_panel.js")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(serve(webui))
    try:
        drive(page, webui)
    finally:
        print(*errors, sep="\n", end="")
    assert errors == [], errors


if __name__ == "__main__":
    main()
