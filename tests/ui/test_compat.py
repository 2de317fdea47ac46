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


def test_events_that_are_wrapped_once_or_twice_keep_their_inputs_and_outputs() -> None:
    with gradio.Blocks(analytics_enabled=False) as page:
        box = gradio.Textbox()
        for event in (box.change, Wrapped(box.change), Wrapped(Wrapped(box.change))):
            listen(event, lambda text: text, [box], [box])
    assert len(page.fns) == 3
    for function in page.fns.values():
        assert function.inputs == function.outputs == [box]
