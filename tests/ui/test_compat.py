"""What the webuis do to gradio."""

from __future__ import annotations

from typing import Any

import gradio

from hnloader.ui.compat import listen


class Wrapped:
    """An event as Forge replaces it."""

    def __init__(self, replaced_event: Any) -> None:
        self.replaced_event = replaced_event

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.replaced_event(*args, **kwargs)


def test_events_that_are_wrapped_keep_their_inputs_and_outputs() -> None:
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
