"""Panel 'Hypernetworks' below the prompt: rows that act before the tags of the prompt.

The panel's value is text in a hidden field, in the form that `rows.read_rows` reads. In the browser,
`javascript/hypernetworks_panel.js` draws the rows and writes changes into the field as JSON. A pasted infotext and
'Send to img2img' change the field, too: Python then reads it, and the browser draws the result. So only Python parses
tags, and a row adds no component to the page.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from hnloader.errors import HypernetworkError

from .applying import default_strength
from .core import Extension
from .hosts.protocol import Panel, ShowsPanel, WritesInfotext, option, show_message
from .redaction import redacted_message
from .rows import read_rows, tags_of, text_of

TITLE = "Hypernetworks"
INFOTEXT_KEY = "Hypernet rows"
_STYLE = Path(__file__).with_name("panel.css")


def register(extension: Extension, host: ShowsPanel) -> None:
    """Show the panel in txt2img and img2img."""
    rows = RowsPanel(extension)
    panel = Panel(TITLE, INFOTEXT_KEY, rows.build, rows.apply, extension.applier.finish)
    extension.exports["HypernetworksPanel"] = host.panel_class(panel)
    if isinstance(host, WritesInfotext):
        host.on_paste(clear_rows)


def clear_rows(fields: dict[str, Any]) -> None:
    """Remove the rows when an image without rows is pasted. Text without settings does not come from an image."""
    if "Steps" in fields:
        fields.setdefault(INFOTEXT_KEY, "")


class RowsPanel:
    """The components, and what a job does with their value."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def apply(self, job: Any, value: Any) -> None:
        """Apply rows from the panel or the API to a job. A row with a problem becomes a message under the image."""
        host = self._extension.host
        rows = read_rows(value)
        for row in rows:
            if row.problem:
                show_message(host, f"{TITLE}: {row.problem}", job)
        tags = tags_of(rows)
        self._extension.applier.begin(job, tags)
        if isinstance(host, WritesInfotext):
            parameters = host.parameters(job)  # the images of a plot share them
            if tags:
                parameters[INFOTEXT_KEY] = text_of(tags)
            else:
                parameters.pop(INFOTEXT_KEY, None)

    def build(self, tab: str) -> Any:
        """Build the components and return the hidden field."""
        from hnloader.ui import compat

        name = f"hnl_{tab}"
        box = compat.make("Textbox", value="", label="Rows", elem_id=f"{name}_rows", elem_classes=["hnl-panel-hidden"])
        style = f"<style>{_STYLE.read_text('utf-8')}</style>"
        if not option(self._extension.host, "hnloader_panel", True):
            compat.html(style)
            return box
        with compat.make("Accordion", TITLE, open=False, elem_id=f"{name}_panel") as panel:
            compat.html(style + self._frame(tab))
            names = compat.html(self._names(tab))
            with compat.make("Row"):
                add = compat.make("Button", "Add hypernetwork", elem_id=f"{name}_add", size="sm")
                refresh = compat.make("Button", "Refresh", elem_id=f"{name}_refresh", size="sm")
                clear = compat.make("Button", "Remove all", elem_id=f"{name}_clear", size="sm")
            state = compat.html(self._state(""), elem_id=f"{name}_state")

        def show(text: str) -> list[Any]:
            return [self._state(text), compat.update(label=_heading(text))]

        def list_files(text: str) -> list[Any]:
            return [self._names(tab), *show(text)]

        compat.listen(box.change, show, [box], [state, panel], queue=False)
        compat.listen(refresh.click, list_files, [box], [names, state, panel], queue=False)
        compat.listen(add.click, None, js=f"() => {{ hnloaderPanel('{tab}').add(); return []; }}")
        compat.listen(clear.click, None, js=f"() => {{ hnloaderPanel('{tab}').clear(); return []; }}")
        return box

    def _frame(self, tab: str) -> str:
        """Return the element that the browser draws the rows in, with the values of a new row."""
        strength = default_strength(self._extension.host)
        fresh = {"enabled": True, "name": "", "strength": strength, "block": "", "start": 0.0, "end": 1.0, "k": 1.0}
        row = escape(json.dumps({**fresh, "v": 1.0}))
        return f'<div class="hnl-panel-rows" data-tab="{tab}" data-fresh="{row}" role="list"></div>'

    def _names(self, tab: str) -> str:
        options = "".join(f'<option value="{escape(name)}"></option>' for name in self._extension.library.names())
        return f'<datalist id="hnl_{tab}_names">{options}</datalist>'

    def _state(self, text: str) -> str:
        """Return the text of the field and how Python read it, for the browser and the user."""
        rows = read_rows(text)
        values = [dict(row.values) for row in rows if row.values]
        tags = tags_of(rows)
        problems = [row.problem for row in rows if row.problem]
        for tag in tags:
            try:
                self._extension.library.find(tag.name)
            except HypernetworkError as error:
                problems.append(redacted_message(self._extension.library.folders(), error))
        return (
            f'<div class="hnl-panel-state" data-source="{escape(text or "")}" data-rows="{escape(json.dumps(values))}">'
            + (f'<p>Same as: <code translate="no">{escape(text_of(tags))}</code></p>' if tags else "")
            + "".join(f'<p class="hnl-panel-problem" role="alert">{escape(problem)}</p>' for problem in problems)
            + "</div>"
        )


def _heading(text: str) -> str:
    count = len(tags_of(read_rows(text)))
    return f"{TITLE} ({count})" if count else TITLE
