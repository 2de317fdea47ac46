"""Chromium for the tests of the page, and what a user does in it.

python -m tests.support.browsers     installs one if none is found, as `make test` does first
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, Playwright, expect, sync_playwright

# Longest time for one step, in milliseconds. A busy machine may need minutes to start a training; waiting costs nothing
# when things work, and the tests measure no time.
PATIENCE = 300_000

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

_COMMANDS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "microsoft-edge")
_APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


def find_chromium(own: str) -> str:
    """Return the program to start: an installed one, or `own`, the driver's download. Raises RuntimeError."""
    if (found := _installed(own)) is None:
        raise RuntimeError("Found no Chromium. Run: python -m tests.support.browsers")
    return found


def start_chromium(playwright: Playwright) -> Browser:
    """Start Chromium, and let expectations wait with patience."""
    expect.set_options(timeout=PATIENCE)
    program = find_chromium(playwright.chromium.executable_path)
    return playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)


def open_tab(browser: Browser, **options: object) -> Page:
    """Open an empty page in its own context; its actions wait with patience."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    return page


def turn_to(page: Page, name: str) -> None:
    """Open a tab."""
    page.get_by_role("tab", name=name).click()


def card(page: Page, name: str) -> Locator:
    """Return a file's card in Library."""
    return page.locator(".hnl-card").filter(has=page.locator(".hnl-name", has_text=name)).first


def set_slider(page: Page, elem_id: str, value: int) -> None:
    """Enter a slider's value."""
    page.locator(f"#{elem_id} input[type=number]").fill(str(value))
    page.locator(f"#{elem_id} input[type=number]").press("Tab")


def select(page: Page, elem_id: str, *labels: str) -> None:
    """Select options of a dropdown."""
    box = page.locator(f"#{elem_id} input").first
    for label in labels:
        box.click()
        page.get_by_role("option", name=label, exact=True).click()
    page.keyboard.press("Escape")


def main() -> int:
    """Install Chromium before the tests, which run in several processes and download nothing."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    if _installed(own) is not None:
        return 0
    tried = []
    for install in (_from_distribution, _from_driver):
        tried.append(install())
        if _installed(own) is not None:
            return 0
    print("Found no Chromium for the tests of the page, and could not install one:", *tried, sep="\n", file=sys.stderr)
    return 1


def _installed(own: str) -> str | None:
    if given := os.environ.get("HNLOADER_CHROMIUM"):
        return given
    for command in _COMMANDS:
        if path := shutil.which(command):
            return path
    return next((path for path in (*_APPLICATIONS, own) if Path(path).is_file()), None)


def _from_distribution() -> str:
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return "apt-get: missing, or not allowed for this user"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"apt-get {arguments[0]}: {done.stderr.strip()[-500:]}"
    return "apt-get: installed, but found no chromium"


def _from_driver() -> str:
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"playwright install chromium: {(done.stdout + done.stderr).strip()[-500:]}"


if __name__ == "__main__":
    sys.exit(main())
