from __future__ import annotations

import pytest

from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


@pytest.fixture(params=["1.10", "1.7"])
def with_cards(request: pytest.FixtureRequest, webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Webui:
    """A webui with the extension and three files, started, with the pages of 1.10 or of 1.7."""
    pages = webui.part("ui_extra_networks")
    if request.param == "1.7":
        monkeypatch.setattr(pages, "ExtraNetworksPage", pages.OldExtraNetworksPage)
        webui.shared.opts.data_labels.pop("extra_networks_card_description_is_html")
    webui.install()
    (webui.hypernetworks / "sketches").mkdir(parents=True)
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "wash.safetensors", ALL_WIDTHS, seed=2)
    save_hypernetwork(webui.hypernetworks / "sketches" / "ink.pt", ALL_WIDTHS, seed=3)
    webui.start()
    return webui
