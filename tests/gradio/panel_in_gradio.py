"""Drive the panel in a browser, in whatever gradio the running Python has.

    make webui-gradio

runs this with the gradio of AUTOMATIC1111's webui (3.41.2) and of Forge (4.40.0). The page holds the panel twice, as
the txt2img and img2img tabs of a webui do, with buttons that do to it what a webui's buttons do.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.paths import ROOT

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio
from playwright.sync_api import Locator, Page, expect, sync_playwright

from extension.host_library import HostLibrary
from extension.panel import RowsPanel
from extension.rows import read_rows, tags_of, text_of
from tests.support.browsers import open_tab, start_chromium
from tests.support.builders import Recipe, make_sides, metadata, tree, write

# Newer than all webuis: hidden components do not exist yet.
LAZY = int(gradio.__version__.partition(".")[0]) >= 5

# The field has one more space than the text that Python read: as if the answer to it was lost, which happens in 3.41.
LOST_ANSWER = """([source, rows]) => {
    const state = document.querySelector('#hnl_txt2img_state .hnl-panel-state');
    Object.assign(state.dataset, {source, rows});
    document.querySelector('#hnl_txt2img_rows :is(textarea, input)').value = source + ' ';
    document.body.append(document.createElement('span'));
}"""
PASTED = "<hypernet:wash:-0.5:block=mid+up@0.5,start=0.1,end=0.9,k=0,v=2><hypernet:nothing:1>"


def stand_in(folder: Path) -> Any:
    """An extension as far as the panel needs it."""
    host = SimpleNamespace(folders=lambda: [folder])
    applier = SimpleNamespace(unet=lambda: None)
    return SimpleNamespace(host=host, library=HostLibrary(host.folders), applier=applier)


def serve(extension: Any, jobs: list[str]) -> str:
    """Serve a page with a panel in two tabs; 'Generate' appends the panel's value to `jobs`."""

    def generate(rows: str) -> str:
        jobs.append(rows)
        return f"jobs: {len(jobs)}"

    panel = RowsPanel(extension)
    with gradio.Blocks(analytics_enabled=False) as page:
        boxes = {}
        for tab in ("txt2img", "img2img"):
            with gradio.Tab(tab), gradio.Group():
                boxes[tab] = panel.build(tab)
                done = gradio.Textbox(label="Done", elem_id=f"{tab}_done")
                gradio.Button("Generate", elem_id=f"{tab}_generate").click(generate, [boxes[tab]], [done])
        gradio.Button("Paste", elem_id="paste").click(lambda: gradio.update(value=PASTED), [], [boxes["txt2img"]])
        gradio.Button("Paste none", elem_id="paste_none").click(lambda: gradio.update(value=""), [], [boxes["txt2img"]])
        gradio.Button("Send", elem_id="send").click(lambda text: text, [boxes["txt2img"]], [boxes["img2img"]])
    page.queue()
    options: dict[str, Any] = {"prevent_thread_lock": True, "quiet": True, "share": False}
    _, url, _ = page.launch(server_name="127.0.0.1", **options)
    return str(url)


class Driver:
    """A user at the page."""

    def __init__(self, page: Page, url: str, folder: Path, jobs: list[str]) -> None:
        self.page, self.url, self.folder, self.jobs = page, url, folder, jobs
        self.open()

    def open(self) -> None:
        self.page.goto(self.url)
        self.open_panel("txt2img")

    def open_panel(self, tab: str) -> None:
        # In 3.41 tabs are plain buttons.
        self.page.locator("[role=tab]" if LAZY else "button", has_text=tab).first.click()
        add = self.page.locator(f"#hnl_{tab}_add")
        self.page.locator(f"#hnl_{tab}_panel").wait_for()
        if not add.is_visible():
            self.page.locator(f"#hnl_{tab}_panel").get_by_text("Apply hypernetworks").first.click()
        add.wait_for()

    def reload(self) -> None:
        """Load the page again, and wait until the remembered rows have reached the script."""
        self.page.reload()
        if LAZY:
            self.open_panel("txt2img")
        expect(self.page.locator("#hnl_txt2img_panel")).to_contain_text("Apply hypernetworks (1)")

    def rows(self, tab: str = "txt2img") -> Locator:
        return self.page.locator(f"#hnl_{tab}_panel .hnl-panel-row")

    def problem(self, row: int, tab: str = "txt2img") -> Locator:
        return self.rows(tab).nth(row).locator(".hnl-panel-problem")

    def set(self, row: int, name: str, value: str, tab: str = "txt2img") -> None:
        field = self.rows(tab).nth(row).locator(f"[name={name}]").first
        if not field.is_visible():
            self.rows(tab).nth(row).locator("summary").click()
        field.fill(value)
        field.press("Tab")

    def tags(self, tab: str = "txt2img") -> str:
        """Return the tags that a job gets."""
        count = len(self.jobs)
        self.page.locator(f"#{tab}_generate").click()
        expect(self.page.locator(f"#{tab}_done textarea, #{tab}_done input").first).to_have_value(f"jobs: {count + 1}")
        return text_of(tags_of(read_rows(self.jobs[-1])))


def drive(user: Driver) -> None:
    """Use the panel as a user does."""
    page = user.page
    assert user.tags() == ""
    expect(page.locator("#hnl_txt2img_panel .hnl-panel-empty")).to_contain_text("Add one here")
    page.locator("#hnl_txt2img_add").click()
    user.set(0, "name", "ink")
    user.set(0, "strength", "0.8")
    page.locator("#hnl_txt2img_add").click()
    user.set(1, "name", "wash")
    user.set(1, "block", "up")
    user.set(1, "start", "0.2")
    both = "<hypernet:ink:0.8><hypernet:wash:1:block=up,start=0.2>"
    assert user.tags() == both
    expect(page.locator("#hnl_txt2img_state code")).to_have_text(both)
    expect(page.locator("#hnl_txt2img_panel")).to_contain_text("Apply hypernetworks (2)")
    expect(user.rows().nth(0).locator(".hnl-panel-models")).to_have_text("For SD 1")
    expect(user.problem(0)).to_be_empty()
    expect(user.rows().nth(1).locator("summary")).to_have_text("Advancedblock=up, start=0.2")
    report("adds rows, and a job gets their tags")

    user.rows().nth(1).locator("[name=up]").click()
    expect(user.rows().nth(0).locator("[name=name]")).to_have_value("wash")
    assert user.tags() == "<hypernet:wash:1:block=up,start=0.2><hypernet:ink:0.8>"
    user.rows().nth(0).locator("[name=enabled]").uncheck()
    assert user.tags() == "<hypernet:ink:0.8>"
    expect(page.locator("#hnl_txt2img_panel")).to_contain_text("Apply hypernetworks (1)")
    report("moves a row, switches one off")

    user.reload()
    expect(user.rows()).to_have_count(2)
    user.open_panel("txt2img")
    expect(user.rows().nth(0).locator("[name=enabled]")).not_to_be_checked()
    expect(user.rows().nth(1).locator("[name=strength]").first).to_have_value("0.8")
    assert user.tags() == "<hypernet:ink:0.8>"
    report("keeps the rows when the page is loaded again")

    page.evaluate("""() => {
        window.hypernetworks = [["ink", "ink"]];  // as tagcomplete keeps the names of .pt files
        const prompt = document.body.appendChild(document.createElement("textarea"));
        for (const text of ["<h", "<hy"]) {
            prompt.value = text;
            prompt.dispatchEvent(new Event("input", { bubbles: true }));
        }
        prompt.remove();
    }""")
    assert page.evaluate("window.hypernetworks.map(([name]) => name)") == ["ink", "broken", "wash"]
    report("adds names to those of tagcomplete")

    user.set(1, "name", "inky")
    expect(user.problem(1)).to_contain_text("'ink'")
    expect(user.rows().nth(1)).to_have_class(re.compile("hnl-panel-wrong"))
    user.set(1, "name", "broken")
    expect(user.problem(1)).to_contain_text("HTML")
    user.set(1, "name", "ink")
    user.set(1, "end", "0")
    expect(user.problem(1)).to_contain_text("Row 2")
    assert user.tags() == ""
    user.set(1, "end", "")
    expect(user.rows().nth(1).locator("[name=end]")).to_have_value("1")
    assert user.tags() == "<hypernet:ink:0.8>"
    report("reports problems")

    page.locator("#paste").click()
    expect(user.rows().nth(0).locator("[name=name]")).to_have_value("wash")
    expect(user.rows().nth(0).locator("[name=block]")).to_have_value("mid+up@0.5")
    expect(user.rows().nth(0).locator("[name=strength]").first).to_have_value("-0.5")
    assert user.tags() == PASTED
    expect(user.problem(1)).to_contain_text("nothing")
    user.rows().nth(1).locator("[name=remove]").click()
    expect(user.rows()).to_have_count(1)
    assert user.tags() == PASTED.split("<hypernet:nothing")[0]
    report("shows pasted rows, removes one")

    page.evaluate(LOST_ANSWER, ["<hypernet:ink:0.3>", '[{"name": "ink", "strength": 0.3}]'])
    expect(user.rows().nth(0).locator("[name=strength]").first).to_have_value("0.3")
    report("shows what was read, also where an answer was lost")

    page.locator("#paste").click()
    expect(user.rows()).to_have_count(2)
    user.rows().nth(1).locator("[name=remove]").click()
    assert user.tags() == PASTED.split("<hypernet:nothing")[0]
    page.locator("#send").click()
    user.open_panel("img2img")
    expect(user.rows("img2img")).to_have_count(1)
    assert user.tags("img2img") == PASTED.split("<hypernet:nothing")[0]
    user.set(0, "k", "1", "img2img")
    assert "k=0" not in user.tags("img2img")
    report("takes the rows to img2img")

    user.reload()
    expect(user.rows("txt2img")).to_have_count(1)
    user.open_panel("img2img")
    expect(user.rows("img2img").locator("[name=k]")).to_have_value("1")
    user.open_panel("txt2img")
    assert "k=0" in user.tags("txt2img")
    page.locator("#paste_none").click()
    expect(user.rows("txt2img")).to_have_count(0)
    assert user.tags() == ""
    user.open_panel("txt2img")

    (user.folder / "late.pt").touch()
    (user.folder / 'x"><img src=q onerror=window.pwned=1>.pt').touch()
    page.locator("#hnl_txt2img_refresh").click()
    expect(page.locator("#hnl_txt2img_names option")).to_have_count(5)
    page.locator("#hnl_txt2img_add").click()
    user.set(0, "name", 'x"><img src=q onerror=window.pwned=1>')
    expect(user.problem(0)).to_contain_text("Rename the file")
    page.locator("#hnl_txt2img_add").click()
    user.set(1, "name", "late")
    assert user.tags() == "<hypernet:late:1>"
    page.locator("#hnl_txt2img_clear").click()
    expect(user.rows()).to_have_count(0)
    assert user.tags() == ""
    assert page.evaluate("window.pwned") is None
    report("lists new files, removes all")


def report(text: str) -> None:
    print(f"gradio {gradio.__version__}: {text}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        recipe = Recipe(structure=(1, 2, 1), activation="relu")
        for file in ("ink.pt", "wash.pt"):
            write(folder / file, tree(make_sides(recipe, (768,)), metadata(recipe, "2022-11")))
        (folder / "broken.pt").write_text("<!DOCTYPE html>")
        jobs: list[str] = []
        url = serve(stand_in(folder), jobs)
        browser = start_chromium(playwright)
        page = open_tab(browser, viewport={"width": 1360, "height": 950})
        # A webui loads the scripts in the folder `javascript` of each extension.
        for script in sorted((ROOT / "javascript").glob("*.js")):
            page.add_init_script(path=script)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        start = time.monotonic()
        try:
            drive(Driver(page, url, folder, jobs))
        finally:
            print(*errors, sep="\n", end="")
            if len(sys.argv) > 1:
                page.screenshot(path=sys.argv[1])
        browser.close()
        assert errors == [], errors
    print(f"gradio {gradio.__version__}: the panel passed in {time.monotonic() - start:.0f} s", flush=True)
    os._exit(0)  # gradio's threads would keep running


if __name__ == "__main__":
    main()
