"""Checks of a real host's page in a browser: panel, tab, cards, quick setting and pasting."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from playwright.sync_api import ConsoleMessage, Locator, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.support.browsers import FLAGS, find_chromium

from .checks import PROMPT, Seen
from .server import Server

# Milliseconds. An image takes seconds; the first one with another checkpoint takes longer.
PATIENCE = 240_000
# 80 steps on a CPU.
LORA_PATIENCE = 3_600_000
QUICK = "setting_sd_hypernetwork"
PASTED = "<hypernet:wash:-0.5:block=mid+up@0.5,start=0.1,end=0.9>"


class User:
    """A user at the page. Each image has another seed, which tells the jobs apart."""

    def __init__(self, page: Page, host: Server, seen: Seen) -> None:
        self.page, self.host, self.seen = page, host, seen
        self.seed = 100
        self.errors: dict[str, str] = {}  # message to source
        page.on("pageerror", lambda error: self.errors.setdefault(error.message, error.stack or ""))
        page.on("console", self._listen)

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.setdefault(message.text, message.location.get("url", ""))

    def open(self) -> None:
        self.page.goto(f"http://127.0.0.1:{self.host.port}/")
        self.page.locator("#txt2img_generate").wait_for()

    def files(self) -> list[str]:
        """Return the names of the hypernetwork files."""
        folder = self.seen.folder / "models" / "hypernetworks"
        return sorted(each.name for each in folder.iterdir() if each.suffix in (".pt", ".safetensors"))

    def turn_to(self, title: str, tabs: str = "#tabs") -> None:
        self.page.locator(f"{tabs} > .tab-nav > button").filter(
            has_text=re.compile(f"^ *{title} *$", re.IGNORECASE)
        ).first.click()

    def fill(self, place: str, value: str) -> None:
        """Fill the field that a selector finds."""
        field = self.page.locator(place).first
        field.fill(value)
        field.press("Tab")

    def settle(self) -> None:
        """Set small images and few steps, as in the other checks."""
        for name, value in (("steps", "2"), ("width", "64"), ("height", "64"), ("cfg_scale", "4")):
            self.fill(f"#txt2img_{name} input[type=number]", value)

    def prompt(self, text: str) -> None:
        self.fill("#txt2img_prompt textarea", text)

    def generate(self) -> str:
        """Generate an image and return the infotext below it."""
        self.seed += 1
        self.fill("#txt2img_seed input", str(self.seed))
        self.page.locator("#txt2img_generate").click()
        info = self.page.locator("#html_info_txt2img").first
        expect(info).to_contain_text(f"Seed: {self.seed},", timeout=PATIENCE)
        expect(self.page.locator("#txt2img_generate")).to_be_visible(timeout=PATIENCE)
        return " ".join(info.inner_text().split())

    def rows(self) -> Locator:
        panel = self.page.locator("#hnl_txt2img_panel")
        if not self.page.locator("#hnl_txt2img_add").is_visible():
            panel.get_by_text("Apply hypernetworks").first.click()
        self.page.locator("#hnl_txt2img_add").wait_for()
        return panel.locator(".hnl-panel-row")

    def set_row(self, row: int, **values: str) -> None:
        for name, value in values.items():
            field = self.rows().nth(row).locator(f"[name={name}]").first
            if not field.is_visible():
                self.rows().nth(row).locator("summary").click()
            field.fill(value)
            field.press("Tab")

    def chosen(self, place: str) -> list[str]:
        """Return the selection of a dropdown."""
        field = self.page.locator(f"{place} input").first
        return [*self.page.locator(f"{place} .token").all_inner_texts(), field.input_value()]

    def choose(self, place: str, name: str) -> None:
        """Select an entry of a dropdown, whose list closes when something else on the page changes."""
        before = self.chosen(place)
        options = self.page.locator(f"{place} li, {place} [role=option], body > [role=listbox] li")
        option = options.filter(has_text=re.compile(f"^[✓ ]*{re.escape(name)} *$")).first
        for _ in range(12):
            self.page.locator(f"{place} input").first.click()
            with suppress(PlaywrightTimeout):
                option.click(timeout=5_000)
            self.page.wait_for_timeout(1_000)
            if self.chosen(place) != before:
                break
            self.page.locator("body").click(position={"x": 1, "y": 1})
        else:
            raise AssertionError(f"{name} cannot be selected; the selection is {before}")
        self.page.keyboard.press("Escape")


@contextmanager
def browser(host: Server, seen: Seen) -> Iterator[User]:
    """Open the host's page in a browser."""
    with sync_playwright() as playwright:
        program = find_chromium(playwright.chromium.executable_path)
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        try:
            user = User(page, host, seen)
            user.open()
            yield user
        finally:
            chromium.close()


def look_at(host: Server, seen: Seen) -> str:
    """Record the errors that the browser reports without the extension."""
    with browser(host, seen) as user:
        user.settle()
        user.prompt(PROMPT)
        user.generate()
        user.open()
        user.page.wait_for_timeout(10_000)  # errors of the page itself come late on a slow computer
        user.turn_to("Settings")
        user.page.keyboard.press("Escape")  # its handler looks for 'Interrupt', which only the tabs of images have
        user.page.wait_for_timeout(1000)
        seen.browser = set(user.errors)
    found = [" ".join(error.split())[:80] for error in sorted(seen.browser)]
    return f"{len(found)} errors in the browser's console: " + " | ".join(found)


def panel(user: User) -> str:
    """Add a row, load the page again, and remove the row."""
    user.settle()
    user.prompt(PROMPT)
    user.rows()
    user.page.locator("#hnl_txt2img_add").click()
    user.set_row(0, name="ink", strength="0.7", start="0.2")
    text = user.generate()
    assert "Hypernet rows: <hypernet:ink:0.7:start=0.2>" in text.replace('"', ""), text
    assert "Hypernet hashes" in text, text
    user.open()
    expect(user.rows()).to_have_count(1)
    expect(user.rows().nth(0).locator("[name=name]")).to_have_value("ink")
    user.settle()
    user.prompt(PROMPT)
    assert "Hypernet rows" in user.generate(), "the remembered row has no effect"
    user.page.locator("#hnl_txt2img_clear").click()
    expect(user.rows()).to_have_count(0)
    return "a row acts, also after loading the page again, and is removed"


def paste(user: User) -> str:
    """Paste the parameters of an image with a row and a tag, then of one without."""
    settings = "Steps: 2, Sampler: Euler, CFG scale: 4, Seed: 7, Size: 64x64"
    user.prompt(
        f'{PROMPT}<hypernet:ink:0.4>\n{settings}, Hypernet rows: "{PASTED}", Hypernet hashes: "ink: 0, wash: 0"'
    )
    user.page.locator("#tab_txt2img #paste, #txt2img_tools #paste").first.click()
    expect(user.page.locator("#txt2img_prompt textarea")).to_have_value(f"{PROMPT}<hypernet:ink:0.4>")
    expect(user.rows()).to_have_count(1)
    row = user.rows().nth(0)
    for name, value in {
        "name": "wash",
        "strength": "-0.5",
        "block": "mid+up@0.5",
        "start": "0.1",
        "end": "0.9",
    }.items():
        expect(row.locator(f"[name={name}]").first).to_have_value(value)
    text = user.generate()
    assert f"Hypernet rows: {PASTED}" in text.replace('"', ""), text
    user.prompt(f"{PROMPT}\n{settings}")
    user.page.locator("#tab_txt2img #paste, #txt2img_tools #paste").first.click()
    expect(user.rows()).to_have_count(0)
    return "rows and tags return; an image without rows removes them"


def quick_setting(user: User) -> str:
    user.turn_to("txt2img")
    user.settle()
    user.prompt(PROMPT)
    user.choose(f"#{QUICK}", "ink")
    text = user.generate()
    assert "Hypernet hashes: ink" in text.replace('"', ""), text
    user.choose(f"#{QUICK}", "None")
    assert "Hypernet" not in user.generate()
    return "'ink' acts, 'None' does not"


def cards(user: User) -> str:
    """Use a card's details and description, and add and remove its tag."""
    page = user.page
    user.turn_to("txt2img")
    user.prompt(PROMPT)
    user.turn_to("Hypernetworks", "#txt2img_extra_tabs")
    shown = page.locator("#txt2img_hypernetworks .card")
    expect(shown.first).to_be_visible()
    assert shown.count() == len(user.files()), shown.all_inner_texts()
    ink = page.locator("#txt2img_hypernetworks .card[data-name=ink]")
    ink.hover()
    ink.locator(".metadata-button").click()
    popup = page.locator(".global-popup")
    expect(popup).to_contain_text("1280")
    popup.locator(".global-popup-close").click(position={"x": 9, "y": 9})  # the popup covers its center
    ink.hover()
    ink.locator(".edit-button").click()
    editor = page.locator("#txt2img_hypernetworks_edit_user_metadata")
    editor.get_by_label("Description").fill("black lines")
    editor.get_by_text("Save", exact=True).click()
    expect(ink.locator(".description")).to_have_text("black lines")
    ink.click()
    expect(page.locator("#txt2img_prompt textarea")).to_have_value(f"{PROMPT} <hypernet:ink:1>")
    page.screenshot(path=user.seen.folder / "cards.png")
    ink.click()
    expect(page.locator("#txt2img_prompt textarea")).to_have_value(PROMPT)
    user.turn_to("Generation", "#txt2img_extra_tabs")
    return f"{shown.count()} cards; details, description, and the tag by a click"


def complete(user: User) -> str:
    """Complete the name of a .safetensors file, which tagcomplete does not list itself."""
    page = user.page
    if not any(each.name.endswith("tagcomplete") for each in (user.seen.folder / "extensions").iterdir()):
        return "a1111-sd-webui-tagcomplete is not installed"
    user.turn_to("txt2img")
    user.rows()
    user.prompt("")
    page.locator("#txt2img_prompt textarea").press_sequentially(f"{PROMPT} <hypernet:dr", delay=100)
    entry = page.locator(".autocompleteResults li").filter(has_text="dry").first
    entry.click()
    expect(page.locator("#txt2img_prompt textarea")).to_have_value(re.compile(r"<hypernet:dry:"))
    user.prompt(PROMPT)
    return "dry.safetensors is completed"


def library(user: User) -> str:
    """List, search, show a problem, and press 'Send to txt2img'."""
    page = user.page
    user.turn_to("Hypernetwork tools")
    cards = page.locator(".hnl-card")
    expect(cards.first).to_be_visible()
    names = cards.all_inner_texts()
    assert len(names) == len(user.files()), names
    cards.filter(has_text="torn").first.click()
    expect(page.locator("#hnl-detail").first).to_contain_text("zip archive")
    page.locator("#hnl-search textarea, #hnl-search input").first.fill("wash")
    expect(cards).to_have_count(1)
    cards.first.click()
    expect(page.locator("#hnl-detail").first).to_contain_text("320, 640, 768, 1280")
    user.turn_to("txt2img")
    user.settle()
    user.prompt(PROMPT)
    user.turn_to("Hypernetwork tools")
    page.locator("#hnl-use").click()
    expect(page.locator("#txt2img_prompt textarea")).to_have_value(f"{PROMPT} <hypernet:wash:1>")
    text = user.generate()
    assert "Hypernet hashes: wash" in text.replace('"', ""), text
    user.turn_to("Hypernetwork tools")
    page.locator("#hnl-search textarea, #hnl-search input").first.fill("")
    return "cards, search, problem of a file, tag sent to txt2img"


@contextmanager
def small_images(host: Server) -> Iterator[None]:
    """Make jobs quick: on a CPU, a step at 512 x 512 takes up to 80 seconds."""
    host.post("/probe/small")
    try:
        yield
    finally:
        host.post("/probe/small")


def convert(user: User) -> str:
    """Convert to safetensors; convert to LoRA and cancel while the model samples."""
    page, models = user.page, user.seen.folder / "models"
    user.turn_to("Hypernetwork tools")
    user.turn_to("Convert", "#hnl-tabs")
    status = page.locator("#hnl-convert-status").first
    user.choose("#hnl-convert-files", "wash.pt")
    page.locator("#hnl-convert").click()
    expect(status).to_contain_text("1 converted", timeout=PATIENCE)
    made = models / "hypernetworks" / "wash.safetensors"
    assert made.is_file()
    made.unlink()
    page.locator("#hnl-convert-to").get_by_text("LoRA").click()
    expect(page.get_by_label("separate folder")).to_be_checked()
    with small_images(user.host):
        page.locator("#hnl-convert").click()
        expect(status).to_contain_text("0 of 1 file:", timeout=PATIENCE)
        page.locator("#hnl-convert-cancel").click()
        expect(status).to_contain_text("Cancelled", timeout=PATIENCE)
    assert not list(models.glob("Lora/*-lora.safetensors"))
    return "to safetensors; a canceled LoRA leaves nothing"


def export_lora(user: User) -> str:
    """Convert a file with one layer, which takes 80 steps."""
    page, models = user.page, user.seen.folder / "models"
    user.turn_to("Hypernetwork tools")
    user.turn_to("Convert", "#hnl-tabs")
    page.locator("#hnl-convert-to").get_by_text("LoRA").click()
    for selected in filter(None, user.chosen("#hnl-convert-files")):
        user.choose("#hnl-convert-files", selected)  # remove it
    user.choose("#hnl-convert-files", "flat.pt")
    chosen = user.chosen("#hnl-convert-files")
    assert " ".join(chosen).split() == ["flat.pt"], chosen
    table = page.locator("#hnl-convert-table").first
    with small_images(user.host):
        page.locator("#hnl-convert").click()
        expect(table).to_contain_text("flat", timeout=LORA_PATIENCE)
    text = " ".join(table.inner_text().split())
    assert (models / "Lora" / "flat-lora.safetensors").is_file(), text
    return text


def compare(user: User) -> str:
    page = user.page
    user.turn_to("Hypernetwork tools")
    user.turn_to("Compare", "#hnl-tabs")
    page.locator("#hnl-compare-prompts textarea").fill(PROMPT)
    user.choose("#hnl-compare-files", "ink.pt")
    user.fill("#hnl-compare-strengths input, #hnl-compare-strengths textarea", "0.5")
    user.fill("#hnl-compare-steps input[type=number]", "2")
    page.get_by_text("Sampler, size").click()
    for label in ("Width", "Height"):
        field = page.locator("#hnl-tabs").get_by_label(label)
        field.fill("64")
        field.press("Tab")
    page.locator("#hnl-compare").click()
    status = page.locator("#hnl-compare-status").first
    expect(status).to_contain_text("Saved as", timeout=PATIENCE)
    expect(page.locator("#hnl-compare-image img").first).to_be_visible()
    return status.inner_text().replace(str(user.seen.folder), "...")


def errors(user: User) -> str:
    """Compare the browser's errors with those without the extension."""
    new = [f"{error} ({place[:500]})" for error, place in user.errors.items() if error not in user.seen.browser]
    assert not new, new[0]
    return f"only the {len(user.seen.browser)} errors that the host has without the extension"


def tried(user: User, check: Callable[[User], str]) -> str:
    """Run a check; if it fails, save `page.png` in the host's folder."""
    try:
        return check(user)
    except BaseException:
        with suppress(PlaywrightError):
            user.page.screenshot(path=user.seen.folder / "page.png", full_page=True)
        raise


PAGE: dict[str, Callable[[User], str]] = {
    "page: panel": panel,
    "page: paste": paste,
    "page: quick setting": quick_setting,
    "page: cards": cards,
    "page: completion": complete,
    "page: library": library,
    "page: convert": convert,
    "page: compare": compare,
    "page: LoRA": export_lora,
    "page: errors": errors,
}
