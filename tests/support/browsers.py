"""A Chromium for the tests: one that is installed, else the distribution's, else the driver's own download.

python -m tests.support.browsers     installs one where there is none, as `make test` does first
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

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
    """The program to start. `own` is where the driver's download would lie. Raises RuntimeError where there is none."""
    if (found := _installed(own)) is None:
        raise RuntimeError("no Chromium for the tests of the page; `python -m tests.support.browsers` installs one")
    return found


def main() -> int:
    """Install one where none is found: before the tests, which run in several processes and download nothing."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    if _installed(own) is not None:
        return 0
    tried = []
    for install in (_from_distribution, _from_driver):
        tried.append(install())
        if _installed(own) is not None:
            return 0
    print("no Chromium for the tests of the page, and none could be installed:", *tried, sep="\n", file=sys.stderr)
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
        return "apt-get: not here, or not for this user"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"apt-get {arguments[0]}: {done.stderr.strip()[-500:]}"
    return "apt-get: installed, but there is no chromium"


def _from_driver() -> str:
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"playwright install chromium: {(done.stdout + done.stderr).strip()[-500:]}"


if __name__ == "__main__":
    sys.exit(main())
