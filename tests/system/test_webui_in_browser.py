"""Panel and tab in a real browser, each in a separate process.

    HNLOADER_SCREENSHOTS=docs/images pytest tests/system/test_webui_in_browser.py

writes the screenshots of docs/webui.md; otherwise they go to a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.paths import ROOT

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow


def drive(what: str, *arguments: object) -> None:
    """Run a driver. If it fails, its output names the step."""
    command = [sys.executable, "-m", f"tests.gradio.{what}_in_gradio", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the {what} passed" in done.stdout


def test_the_panel() -> None:
    drive("panel")


def test_the_tab(tmp_path: Path) -> None:
    folder = Path(os.environ.get("HNLOADER_SCREENSHOTS", tmp_path)).resolve()
    drive("tab", folder)
    for name in ("webui-panel.png", "webui-tab.png"):
        assert (folder / name).stat().st_size < 150_000
        with Image.open(folder / name) as image:
            colors = image.convert("RGB").resize((120, 80)).getcolors(maxcolors=9600)
            assert len(colors) > 50
