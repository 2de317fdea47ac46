from __future__ import annotations

import pytest

from hnloader.ui import Host
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


@pytest.fixture
def running(webui: Webui) -> Webui:
    """A webui with the extension and two files, started."""
    webui.install()
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "wash.pt", ALL_WIDTHS, seed=2)
    webui.start()
    return webui


@pytest.fixture
def pages(running: Webui, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The webui as the tab describes it to the pages."""
    given: list[Host] = []
    monkeypatch.setattr("hnloader_webui.tab.build", given.append)
    ((_, title, elem_id),) = running.tabs()
    assert (title, elem_id) == ("Hypernetwork tools", "hnloader")
    return given[0]
