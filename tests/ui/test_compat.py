"""Differences between releases of gradio, and what the webuis change in it."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import gradio
import PIL.Image
import pytest
from gradio.data_classes import FileData

from hnloader.ui.compat import image_input, image_output, listen


class Wrapped:
    """An event as Forge replaces it."""

    def __init__(self, replaced_event: Any) -> None:
        self.replaced_event = replaced_event

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.replaced_event(*args, **kwargs)


def test_wrapped_events_keep_inputs_and_outputs() -> None:
    with gradio.Blocks(analytics_enabled=False) as page:
        box = gradio.Textbox()
        first = listen(box.change, lambda text: text, [box], [box])
        then = first.then

        def passed_on(*args: Any, _js: str | None = None, **kwargs: Any) -> Any:
            return then(*args, **kwargs)

        for event in (Wrapped(box.change), Wrapped(Wrapped(box.change)), passed_on):
            listen(event, lambda text: text, [box], [box])
    assert len(page.fns) == 4
    for function in page.fns.values():
        assert function.inputs == function.outputs == [box]


def test_options_that_a_webui_hides_are_known_from_the_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    class Image:
        """The class as reForge leaves it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.given = kwargs

    class Pil(Image):
        def __init__(self, value: Any = None, *, label: str | None = None, elem_id: str | None = None) -> None: ...

    monkeypatch.setattr(gradio, "Image", Image)
    assert image_output(label="Grid", elem_id="grid", newer=True).given == {"label": "Grid", "elem_id": "grid"}


def test_gradio_3_can_evaluate_the_annotations_of_handlers() -> None:
    def turn(by: int, text: MissingAtRuntime) -> MissingAtRuntime:  # type: ignore[name-defined]  # noqa: F821
        return f"{text} {by}"

    with gradio.Blocks(analytics_enabled=False) as page:
        box = gradio.Textbox()
        listen(box.change, partial(turn, 1), [box], [box])
        listen(box.change, turn, [box, box], [box])
    for function in page.fns.values():
        assert get_type_hints(function.fn) == {}


def test_gradio_does_not_open_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PIL.Image, "open", lambda *args, **options: pytest.fail("gradio opened it"))
    (tmp_path / "ink.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with gradio.Blocks(analytics_enabled=False):
        component = image_input(label="Image", height=220)
    assert component.preprocess(None) is None
    wanted = b"%!PS-Adobe-3.0 EPSF-3.0\n"
    assert component.preprocess(FileData(path=str(tmp_path / "ink.png"), orig_name="ink.png")) == wanted
    url = "data:image/png;base64," + base64.b64encode(wanted).decode()
    assert component.preprocess(url) == wanted  # gradio 3
    assert component.preprocess("data:image/png;base64,%") is None
