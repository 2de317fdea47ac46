"""Forge, whose layers cast their weights at each call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import running as running_webui
from tests.support.tiny_model import save_hypernetwork
from tests.support.webui_images import by_formula, close, images

TAG = "<hypernet:ink:0.7>"


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "float8_e4m3fn", "int8"])
def test_images_match_the_formula_with_any_storage_type(storage: str, tmp_path: Path) -> None:
    with running_webui(tmp_path / "webui", forge=True, storage=storage) as webui:
        webui.install()
        save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
        webui.start()
        stored = {name: value.clone() for name, value in webui.unet.state_dict().items()}
        plain, tagged = images(webui, "a"), images(webui, f"a{TAG}")
        assert all(torch.equal(value, stored[name]) for name, value in webui.unet.state_dict().items())
        by_formula(webui)
        assert close(tagged, images(webui, "a"), plain)
