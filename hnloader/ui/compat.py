"""Everything that differs between gradio 3.41, 4.40 and the current release, for the pages.

Releases renamed, moved or dropped arguments. `make` and `listen` pass on those that the installed release knows; where
a name changed, callers give both.
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

__all__ = [
    "blocks",
    "files_input",
    "gallery",
    "html",
    "image_input",
    "image_output",
    "launch",
    "listen",
    "make",
    "reveal",
    "theme",
    "update",
]


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _options(component: Any) -> set[str]:
    """Return the names of a component's options, also where reForge hides those of Image behind `**kwargs`."""
    names = _parameters(component.__init__)
    if names == {"self", "args", "kwargs"}:
        names.update(*(_parameters(template.__init__) for template in component.__subclasses__()))
    return names


def _event_parameters(event: Callable[..., Any]) -> set[str]:
    """Return an event's parameters, also where Forge wraps it in a function that passes everything on."""
    # Components with two names (Text, Textbox) are wrapped twice.
    while hasattr(event, "replaced_event"):
        event = event.replaced_event
    names = _parameters(event)
    if "inputs" not in names and Context.root_block is not None:
        # A function around `then`, which hides its parameters. Every event has the same ones.
        names = _parameters(Context.root_block.load)
    return names


def _known(names: set[str], arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in names}


def make(component: str, *arguments: Any, **options: Any) -> Any:
    """Make a gradio component by its name, with the options that this release knows."""
    kind = getattr(gradio, component)
    sendable = {name: all_well_formed(value) for name, value in options.items()}
    made = kind(*map(all_well_formed, arguments), **_known(_options(kind), sendable))
    # The webuis keep a default for each tab and label in ui-config.json, for ever, and give two `Steps` the same one.
    made.do_not_save_to_config = True
    return made


def html(value: str = "", **options: Any) -> Any:
    """Make HTML without the styles that gradio 6 gives its tables and buttons."""
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
    """Call `function` at an event, without gradio's progress display and without a public API endpoint.

    With `queue` False it runs at once, whatever else is running; a generator function needs the queue.
    """
    options: dict[str, Any] = {
        "inputs": list(inputs),
        "outputs": list(outputs),
        "queue": queue,
        "show_progress": "hidden",
        # Users and pages do not wait for each other (3.x: one limit for the whole queue).
        "concurrency_limit": None,
        "js": js,  # since 4.0
        "_js": js,  # 3.x
    }
    names = _event_parameters(event)
    known = _known(names, options)
    if "api_visibility" in names:  # since 6.0
        known["api_visibility"] = "private"
    else:
        known["api_name"] = False
    return event(_sending(function), **known)


def reveal(event: Callable[..., Any], elem_id: str) -> None:
    """Scroll to a component at an event where the page has one column, so that the result is in view."""
    found = f"document.getElementById('{elem_id}')"
    scroll = f"{found}?.scrollIntoView({{behavior: 'smooth', block: 'nearest'}})"
    listen(event, None, js=f"() => {{ if (innerWidth < 800) setTimeout(() => {scroll}, 100); return []; }}")


def _sending(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Return the function with every text in its results made valid UTF-8, or the page would receive nothing."""
    if function is None:
        return None
    made = function
    if inspect.isgeneratorfunction(inspect.unwrap(function)):

        @functools.wraps(made)
        def yielding(*arguments: Any) -> Iterator[Any]:
            for values in made(*arguments):
                yield all_well_formed(values)

        sending: Callable[..., Any] = yielding
    else:

        @functools.wraps(made)
        def returning(*arguments: Any) -> Any:
            return all_well_formed(made(*arguments))

        sending = returning
    # 3.x evaluates the annotations, and would look up their names in the wrapped function, which may be a partial.
    sending.__annotations__ = {}
    return sending


def update(**values: Any) -> Any:
    """Return what changes a component's properties as a handler's output."""
    return gradio.update(**values)


def image_input(**options: Any) -> Any:
    """Make a place to drop an image. Its value is the file's bytes.

    gradio itself would open a file of any format, including those that make Pillow start other programs.
    """
    # 3.x: source="upload"; since 4.0: sources=["upload"].
    component = make("Image", type="filepath", source="upload", sources=["upload"], interactive=True, **options)
    component.preprocess = _unopened
    return component


def _unopened(payload: Any) -> bytes | None:
    """Return the upload's bytes: 3.x sends a data URL, 4.0 and newer the path of a file in gradio's folder."""
    if isinstance(payload, str):
        with contextlib.suppress(ValueError):
            return base64.b64decode(payload.partition(",")[2], validate=True)
        return None
    path = getattr(payload, "path", None)
    return None if path is None else read_regular(path, 64 << 20)


def files_input(**options: Any) -> Any:
    """Make a place to drop several images. Its value is the bytes of each; see `image_input`."""
    component = make("File", file_count="multiple", file_types=["image"], interactive=True, **options)
    component.preprocess = _all_unopened
    return component


def _all_unopened(payload: Any) -> list[bytes]:
    """Return the bytes of each upload."""
    parts = getattr(payload, "root", payload) or []
    return [data for part in parts if (data := _unopened(part)) is not None]


# 3.x and 4.x; since 6.0. PNG keeps the parameters in an image.
_IMAGE_OPTIONS = {"show_share_button": False, "buttons": ["download", "fullscreen"], "format": "png"}


def image_output(**options: Any) -> Any:
    """Make a place that shows an image, with a download button."""
    return make("Image", type="pil", interactive=False, show_label=False, **_IMAGE_OPTIONS, **options)


def gallery(**options: Any) -> Any:
    """Make a place that shows images side by side."""
    shown = {"interactive": False, "object_fit": "contain", "show_label": False, "fit_columns": False}
    return make("Gallery", **_IMAGE_OPTIONS, **shown, **options)


def launch(blocks: Any, **options: Any) -> Any:
    """Start serving, with the options that this release knows."""
    names = _parameters(blocks.launch)
    if "ssr_mode" in names:  # since 5.0
        options = {"ssr_mode": False, "footer_links": [], **options}
    return blocks.launch(**_known(names, {"show_api": False, "quiet": True, "share": False, **options}))


def theme() -> Any:
    """Return gradio's plain theme with system fonts: the default downloads its fonts."""
    return gradio.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )


def blocks(title: str) -> Any:
    """Make a standalone page. Since gradio 6, `launch` takes the theme instead."""
    return make("Blocks", title=title, theme=theme(), analytics_enabled=False)
