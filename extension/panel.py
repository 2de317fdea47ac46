"""Panel 'Apply hypernetworks' below the prompt: rows that act before the tags of the prompt.

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
from hnloader.formats.registry import suffixes
from hnloader.ui.sidecars import thumbnail_url

from .applying import default_strength
from .core import Extension
from .facts import facts_of, mismatch
from .hosts.protocol import Panel, ShowsCards, ShowsPanel, ShowsTab, WritesInfotext, option, show_message
from .redaction import redacted_message
from .rows import Row, read_rows, tags_of, text_of
from .tab import PANEL_TITLE as TITLE
from .tab import TITLE as TOOLS_TITLE

NAME = "Hypernetworks"  # of the script in requests to the API
CARDS_TITLE = "Hypernetworks"  # the name of the webui's own page
INFOTEXT_KEY = "Hypernet rows"
_PREVIEW_SIDE = 96  # pixels
_STYLE = Path(__file__).with_name("panel.css")


def register(extension: Extension, host: ShowsPanel) -> None:
    """Show the panel in txt2img and img2img."""
    rows = RowsPanel(extension)
    panel = Panel(NAME, INFOTEXT_KEY, rows.build, rows.apply, extension.applier.finish)
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
                show_message(host, f"{NAME}: {row.problem}", job)
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
        host = self._extension.host
        fresh = {"enabled": True, "name": "", "strength": default_strength(host), "block": "", "start": 0.0, "end": 1.0}
        row = escape(json.dumps({**fresh, "k": 1.0, "v": 1.0}))
        tools = f' data-tools="{escape(TOOLS_TITLE)}"' if isinstance(host, ShowsTab) else ""
        cards = f' data-cards="{escape(CARDS_TITLE)}"' if isinstance(host, ShowsCards) else ""
        return f'<div class="hnl-panel-rows" data-tab="{tab}" data-fresh="{row}"{tools}{cards} role="list"></div>'

    def _names(self, tab: str) -> str:
        names = self._extension.library.names()
        options = "".join(f'<option value="{escape(name)}"></option>' for name in names)
        none = f"<p>{escape(self._no_files())}</p>" if not names else ""
        return f'<datalist id="hnl_{tab}_names">{options}</datalist>{none}'

    def _no_files(self) -> str:
        folder = "/".join(self._extension.library.folders()[0].parts[-2:])
        return f"Found no hypernetworks. Put {', '.join(suffixes())} files into {folder}, then press Refresh."

    def _state(self, text: str) -> str:
        """Return the text of the field and how Python read it, for the browser and the user."""
        rows = read_rows(text)
        drawn = [row for row in rows if row.values]  # the others have nothing to draw
        tags = tags_of(rows)
        data = {
            "source": text or "",
            "rows": json.dumps([dict(row.values) for row in drawn]),
            "notes": json.dumps([self._note(row) for row in drawn]),
        }
        attributes = " ".join(f'data-{key}="{escape(value)}"' for key, value in data.items())
        problems = [row.problem for row in rows if row.problem and not row.values]
        return (
            f'<div class="hnl-panel-state" {attributes}>'
            + (f'<p>Same as: <code translate="no">{escape(text_of(tags))}</code></p>' if tags else "")
            + "".join(f'<p class="hnl-panel-problem" role="alert">{escape(problem)}</p>' for problem in problems)
            + "</div>"
        )

    def _note(self, row: Row) -> dict[str, str]:
        """Return what a row shows about its file: `models`, `preview` and `problem`."""
        library = self._extension.library
        name = row.tag.name if row.tag is not None else row.values.get("name")
        if not isinstance(name, str) or not name.strip():
            return {"problem": row.problem}
        try:
            path = library.find(name.strip()).path
        except HypernetworkError as error:
            return {"problem": row.problem or redacted_message(library.folders(), error)}
        facts = facts_of(library, path)
        problem = row.problem or facts.problem
        if facts.info is not None and not problem:
            problem = mismatch(facts.info, self._extension.applier.unet())
        return {"models": facts.models, "preview": thumbnail_url(path, _PREVIEW_SIDE), "problem": problem}


def _heading(text: str) -> str:
    count = len(tags_of(read_rows(text)))
    return f"{TITLE} ({count})" if count else TITLE
