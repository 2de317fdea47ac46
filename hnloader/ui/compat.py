"""Everything in which gradio 3.41, 4.40 and the current release differ, for the pages.

Arguments were renamed, moved or dropped between the releases. `make` and `listen` pass on those that the installed
release knows; where a name changed, both are given here.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio
from gradio.context import Context

from hnloader.files import read_regular
from hnloader.texts import all_well_formed


def _names(function: Callable[..., Any]) -> set[str]:
    """The arguments that a component or an event takes by name."""
    return set(inspect.signature(function).parameters)


def _names_of_event(event: Callable[..., Any]) -> set[str]:
    """The same for an event, also where Forge has put it into something that passes everything on."""
    # An object with the event in it; components with two names (Text, Textbox) have two around each other.
    while hasattr(event, "replaced_event"):
        event = event.replaced_event
    names = _names(event)
    if "inputs" not in names and Context.root_block is not None:
        # A function around `then`, which does not tell what it calls: it takes what every event takes.
        names = _names(Context.root_block.load)
    return names


def _known(names: set[str], arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in names}


def make(component: str, *arguments: Any, **options: Any) -> Any:
    """A gradio component by its name, with those of the options that this release knows."""
    kind = getattr(gradio, component)
    return kind(*map(all_well_formed, arguments), **_known(_names(kind.__init__), _sendable(options)))


def html(value: str = "", **options: Any) -> Any:
    """HTML as it is: gradio 6 would style its tables and buttons otherwise."""
    return make("HTML", value, apply_default_css=False, padding=False, **options)


def listen(
    event: Callable[..., Any],
    function: Callable[..., Any] | None,
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    *,
    queue: bool = True,
    js: str | None = None,
) -> Any:
    """Call `function` at an event, without gradio's own progress display and without an API endpoint of its own.

    With `queue` False it is not held up by others that run; a generator function needs the queue.
    """
    options: dict[str, Any] = {
        "inputs": list(inputs),
        "outputs": list(outputs),
        "queue": queue,
        "show_progress": "hidden",
        # Several users, and several pages of one, do not wait for each other (3.x: one limit for all of the queue).
        "concurrency_limit": None,
        "js": js,  # 4.0 on
        "_js": js,  # 3.x
    }
    names = _names_of_event(event)
    known = _known(names, options)
    if "api_visibility" in names:  # 6.0 on
        known["api_visibility"] = "private"
    else:
        known["api_name"] = False
    return event(_sending(function), **known)


def _sendable(options: dict[str, Any]) -> dict[str, Any]:
    return {name: all_well_formed(value) for name, value in options.items()}


def _sending(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The same function; all that it returns or yields can be sent as UTF-8, or the page would get nothing of it."""
    if function is None:
        return None
    made = function
    if inspect.isgeneratorfunction(inspect.unwrap(function)):

        @functools.wraps(made)
        def yielding(*arguments: Any) -> Iterator[Any]:
            for values in made(*arguments):
                yield all_well_formed(values)

        return yielding

    @functools.wraps(made)
    def returning(*arguments: Any) -> Any:
        return all_well_formed(made(*arguments))

    return returning


def update(**values: Any) -> Any:
    """What a handler returns to change a component's properties."""
    return gradio.update(**values)


def image_input(**options: Any) -> Any:
    """A place to drop an image from the user's disk; its value is what the file holds, as bytes.

    gradio itself would open a file of any format, also of those with which Pillow starts other programs.
    """
    # 3.x: source="upload"; 4.0 on: sources=["upload"].
    component = make("Image", type="filepath", source="upload", sources=["upload"], interactive=True, **options)
    component.preprocess = _unopened
    return component


def _unopened(payload: Any) -> bytes | None:
    """What was uploaded: in 3.x a data URL, from 4.0 on something with the path of a file in gradio's folder."""
    if isinstance(payload, str):
        with contextlib.suppress(ValueError):
            return base64.b64decode(payload.partition(",")[2], validate=True)
        return None
    path = getattr(payload, "path", None)
    return None if path is None else read_regular(path, 64 << 20)


def image_output(**options: Any) -> Any:
    """A place to show an image, with download; PNG, so that the parameters in it are kept."""
    bare = {"show_share_button": False, "buttons": ["download", "fullscreen"]}  # 3.x and 4.x; 6.0 on
    return make("Image", type="pil", format="png", interactive=False, show_label=False, **bare, **options)


def gallery(**options: Any) -> Any:
    """Images side by side, PNG as above."""
    bare = {"show_share_button": False, "buttons": ["download", "fullscreen"], "fit_columns": False}
    shown = {"format": "png", "interactive": False, "object_fit": "contain", "show_label": False}
    return make("Gallery", **bare, **shown, **options)


def launch(blocks: Any, **options: Any) -> Any:
    """Start serving, with the options that this release knows."""
    names = _names(blocks.launch)
    if "ssr_mode" in names:  # 5.0 on
        options = {"ssr_mode": False, "footer_links": [], **options}
    return blocks.launch(**_known(names, {"show_api": False, "quiet": True, "share": False, **options}))


def theme() -> Any:
    """gradio's plain theme with the system's fonts: the default fetches its fonts from elsewhere."""
    return gradio.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )


def blocks(title: str) -> Any:
    """A page of its own. From gradio 6 on, the theme is an option of `launch`, which takes it from here."""
    return make("Blocks", title=title, theme=theme(), analytics_enabled=False)
