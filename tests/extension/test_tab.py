"""The tab: what it tells the pages about the webui."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnloader.errors import HypernetworkError
from hnloader.ui import Host
from tests.support.standins.webui import Webui


def test_folders_are_those_of_the_webui(running: Webui, pages: Host) -> None:
    assert list(pages.folders()) == [running.hypernetworks]
    assert pages.output() == running.folder / "output"
    assert pages.converted() == running.hypernetworks / "converted"
    assert pages.loras() == running.folder / "models" / "Lora"
    assert pages.lora_base()["source"] == Path("first.safetensors")


def test_lora_requires_a_checkpoint(running: Webui, pages: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        if not running.forge:
            raise FileNotFoundError

    monkeypatch.setattr(running.sd_models, "select_checkpoint", none)
    with pytest.raises(HypernetworkError):
        pages.lora_base()


def test_page_is_built_after_each_reload(running: Webui) -> None:
    for _ in range(2):
        ((page, _, _),) = running.tabs()
        assert {"hnl-library", "hnl-compare", "hnl-convert"} <= {
            getattr(block, "elem_id", None) for block in page.blocks.values()
        }
        running.reload()
    assert running.reports == []


@pytest.mark.parametrize("place", ["tab", "txt2img", "img2img"])
def test_no_default_goes_into_the_webui_s_file(running: Webui, place: str) -> None:
    """The webuis keep the default of each component in ui-config.json, by tab and label, at the first start."""
    import gradio

    if place == "tab":
        ((page, _, _),) = running.tabs()
    else:
        with gradio.Blocks() as page:
            (script,) = running.part("scripts").ScriptRunner(place == "img2img").alwayson_scripts
            script.ui(place == "img2img")
    found = [block for block in page.blocks.values() if isinstance(block, gradio.components.Component)]
    assert len(found) > 5
    assert [block for block in found if not getattr(block, "do_not_save_to_config", False)] == []


def test_training_uses_the_webui_s_folders_and_checkpoint(running: Webui, pages: Host) -> None:
    place = pages.training
    assert place is not None
    assert place.library() == running.hypernetworks
    assert place.embeddings is not None
    assert place.embeddings() == running.folder / "embeddings"
    assert place.folder() == pages.output() / "trainings"
    checkpoint = pages.lora_base()["source"] if pages.lora_base else None
    assert place.models() == [str(checkpoint)]
    assert place.may_name_python


def test_public_webui_accepts_no_python_interpreter(running: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Host] = []
    monkeypatch.setattr("hnloader_webui.tab.build", given.append)
    monkeypatch.setattr(running.part("shared").cmd_opts, "listen", True, raising=False)
    running.tabs()
    assert given[0].training is not None
    assert not given[0].training.may_name_python
