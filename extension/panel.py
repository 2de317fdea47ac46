"""The panel 'Hypernetworks' below the prompt: rows that act before the tags of the prompt.

The panel is a script of the host with one value: a text with the rows, as `rows.read_rows` reads it. The value is in a
text field that is not shown. `javascript/hypernetworks_panel.js` draws the rows in the browser and writes them into the
field as JSON; whatever else changes the field (a pasted infotext, 'Send to img2img'), Python reads it and the browser
draws what was read. So tags are read in one place, and a row costs the host's page nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hnloader.errors import HypernetworkError

from .applying import default_strength
from .rows import Row, read_rows, tags_of, text_of
from .runtime import Extension

TITLE = "Hypernetworks"
ROWS = "Hypernet rows"
_STYLE = Path(__file__).with_name("panel.css")


def script_class(extension: Extension) -> type:
    """The class that the host makes one object of for each tab, `txt2img` and `img2img`."""
    from modules import script_callbacks, scripts

    class HypernetworksPanel(scripts.Script):  # type: ignore[misc, unused-ignore]
        """See the module."""

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            box = build(extension, "img2img" if is_img2img else "txt2img")
            self.infotext_fields = [(box, ROWS)]
            self.paste_field_names = [ROWS]
            return [box]

        def process(self, p: Any, *args: Any) -> None:
            apply_rows(extension, p, args[0] if args else None)

    script_callbacks.on_infotext_pasted(no_rows)
    return HypernetworksPanel


def apply_rows(extension: Extension, processing: Any, given: Any) -> None:
    """Have a job apply what the panel or the API gave. What can't be read is said under the image."""
    rows = read_rows(given)
    for row in rows:
        if row.problem:
            extension.host.comment(processing, f"Hypernetworks: {row.problem}")
    tags = tags_of(rows)
    extension.applier.set_rows(processing, tags)
    parameters = processing.extra_generation_params  # a plot's images share one
    if tags:
        parameters[ROWS] = text_of(tags)
    else:
        parameters.pop(ROWS, None)


def no_rows(infotext: str, fields: dict[str, Any]) -> None:
    """A pasted image that had no rows leaves none; a text without settings is no image's and leaves them."""
    if "Steps" in fields:
        fields.setdefault(ROWS, "")


def build(extension: Extension, tab: str) -> Any:
    """The panel's components, within the host's page; returns the field with the rows."""
    from hnloader.ui import compat

    name = f"hnl_{tab}"
    box = compat.make("Textbox", value="", label="Rows", elem_id=f"{name}_rows", elem_classes=["hnl-panel-hidden"])
    box.do_not_save_to_config = True  # the browser keeps the rows
    if not extension.host.option("hnloader_panel", True):
        compat.html(_style())
        return box
    with compat.make("Accordion", TITLE, open=False, elem_id=f"{name}_panel") as panel:
        compat.html(_style() + _frame(extension, tab))
        names = compat.html(_names(extension, tab))
        with compat.make("Row"):
            add = compat.make("Button", "Add hypernetwork", elem_id=f"{name}_add", size="sm")
            refresh = compat.make("Button", "Refresh files", elem_id=f"{name}_refresh", size="sm")
            clear = compat.make("Button", "Remove all", elem_id=f"{name}_clear", size="sm")
        state = compat.html(_state(extension, ""), elem_id=f"{name}_state")

    def show(text: str) -> list[Any]:
        return [_state(extension, text), compat.update(label=_heading(text))]

    def list_files(text: str) -> list[Any]:
        return [_names(extension, tab), *show(text)]

    compat.listen(box.change, show, [box], [state, panel], queue=False)
    compat.listen(refresh.click, list_files, [box], [names, state, panel], queue=False)
    compat.listen(add.click, None, js=f"() => {{ hnloaderPanel('{tab}').add(); return []; }}")
    compat.listen(clear.click, None, js=f"() => {{ hnloaderPanel('{tab}').clear(); return []; }}")
    return box


def _style() -> str:
    return f"<style>{_STYLE.read_text('utf-8')}</style>"


def _frame(extension: Extension, tab: str) -> str:
    """Where the browser draws the rows, and the values of a new one."""
    fresh = {"enabled": True, "name": "", "strength": 1.0, "block": "", "start": 0.0, "end": 1.0, "k": 1.0, "v": 1.0}
    fresh["strength"] = default_strength(extension.host)
    return f'<div class="hnl-panel-rows" data-tab="{tab}" data-fresh="{escape(json.dumps(fresh))}" role="list"></div>'


def _names(extension: Extension, tab: str) -> str:
    options = "".join(f'<option value="{escape(name)}"></option>' for name in extension.names())
    return f'<datalist id="hnl_{tab}_names">{options}</datalist>'


def _heading(text: str) -> str:
    count = len(tags_of(read_rows(text)))
    return f"{TITLE} ({count})" if count else TITLE


def _state(extension: Extension, text: str) -> str:
    """What Python read in the field, for the browser and for the user."""
    rows = read_rows(text)
    values = [dict(row.values) for row in rows if row.values]
    tags = text_of(tags_of(rows))
    return (
        f'<div class="hnl-panel-state" data-source="{escape(text or "")}" data-rows="{escape(json.dumps(values))}">'
        + (f'<p>As tags: <code translate="no">{escape(tags)}</code></p>' if tags else "")
        + "".join(
            f'<p class="hnl-panel-problem" role="alert">{escape(text)}</p>' for text in _problems(extension, rows)
        )
        + "</div>"
    )


def _problems(extension: Extension, rows: Sequence[Row]) -> list[str]:
    problems = [row.problem for row in rows if row.problem]
    for tag in tags_of(rows):
        try:
            extension.find(tag.name)
        except HypernetworkError as error:
            problems.append(str(error))
    return problems
