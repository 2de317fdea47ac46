"""Settings of the extension."""

from __future__ import annotations

from tests.support.paths import ROOT
from tests.support.standins.webui import Webui


def test_every_option_is_read(running: Webui) -> None:
    keys = {key for key in running.shared.opts.data_labels if key.startswith("hnloader_")}
    read = "".join(path.read_text() for path in (ROOT / "extension").rglob("*.py") if path.name != "options.py")
    assert keys
    assert all(f'"{key}"' in read for key in keys)
