"""HTML of the pages. Every text from a file or a user goes through `escaped`."""

from __future__ import annotations

import datetime
import html
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING

from hnloader.texts import as_text, well_formed
from hnloader.ui.sidecars import read_description, thumbnail_url
from hnloader.units import counted, size_text

if TYPE_CHECKING:
    from hnloader.embeddings.embedding_info import EmbeddingInfo
    from hnloader.inspection import FileInfo
    from hnloader.ui.catalog_entry import Entry

__all__ = [
    "PICK_BUTTON",
    "cards",
    "details",
    "empty",
    "escaped",
    "facts",
    "grid",
    "headline",
    "notice",
    "progress",
    "reason",
    "status",
    "style",
    "table",
]

# Control characters, and marks that change the direction of the surrounding text.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# gradio 6 fills values into templates; files must not supply the marks.
_TEMPLATE_MARKS = {"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"}
_LONGEST_VALUE = 300
_LONGEST_TEXT = 10_000  # of notices with lists, of prompts
_MOST_VALUES = 200
_MOST_COPIES = 10

# A card stores its key in the window and clicks a hidden button that the page listens to. This way of sending a click
# on HTML to the server works in every release of gradio.
PICK_BUTTON = "hnl-pick"
_PICK = f"window.hnlPicked=this.dataset.key;document.querySelector('#{PICK_BUTTON}').click()"


def escaped(value: object, longest: int = _LONGEST_TEXT) -> str:
    """Escape text for an HTML element or a quoted attribute."""
    text = well_formed(as_text(value, longest))
    text = as_text(_INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text), longest)
    text = html.escape(text)
    return "".join(_TEMPLATE_MARKS.get(letter, letter) for letter in text)


@lru_cache
def style() -> str:
    """Return the style sheet as an element, the one form that a webui's tab can hold."""
    return f"<style>{files('hnloader.ui').joinpath('style.css').read_text(encoding='utf-8')}</style>"


def notice(text: str, kind: str = "info") -> str:
    """Return a message of kind info, good or bad that screen readers announce, "" for an empty text."""
    if not text:
        return ""
    role = "alert" if kind == "bad" else "status"
    return f'<div class="hnl-notice hnl-{kind}" role="{role}">{escaped(text)}</div>'


def progress(done: int, total: int, text: str) -> str:
    """Return a progress bar with a text."""
    percent = 0 if total < 1 else min(100, round(100 * done / total))
    return (
        f'<div class="hnl-progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" aria-label="{escaped(text)}">'
        f'<div class="hnl-bar" style="width:{percent}%"></div><span>{escaped(text)}</span></div>'
    )


def status(text: str) -> str:
    """Return a quiet line that screen readers announce, "" for an empty text."""
    return f'<div class="hnl-status" role="status">{escaped(text)}</div>' if text else ""


def empty(title: str, *lines: str) -> str:
    """Return a hint for a place without contents: what to do first."""
    body = "".join(f"<p>{escaped(line)}</p>" for line in lines)
    return f'<div class="hnl-empty"><h3>{escaped(title)}</h3>{body}</div>'


def cards(entries: Sequence[Entry], chosen: str | None) -> str:
    """Return one card per file: a button, so that Tab, Enter and the space bar work."""
    return f'<div class="hnl-cards">{"".join(_card(entry, entry.key == chosen) for entry in entries)}</div>'


def _card(entry: Entry, chosen: bool) -> str:
    info = entry.info
    bad = entry.broken
    if entry.embedding is not None:
        badge = f'<span class="hnl-badge">{escaped(entry.embedding.embedding.made_for)}</span>'
        line = f"embedding, {counted(entry.embedding.embedding.count, 'vector')}"
    elif info is None:
        badge = '<span class="hnl-badge hnl-bad">error</span>' if bad else ""
        line = escaped(reason(entry), 110)
    else:
        badge = f'<span class="hnl-badge{"" if info.families else " hnl-dim"}">{escaped(_fits(info))}</span>'
        line = escaped(_structure(info), 90)
    steps = "" if info is None or info.step is None else f" · {counted(info.step, 'step')}"
    return (
        f'<button type="button" class="hnl-card{" hnl-broken" if bad else ""}" data-key="{escaped(entry.key)}" '
        f'aria-pressed="{"true" if chosen else "false"}" title="{escaped(entry.label)}" onclick="{_PICK}">'
        f'{_image(entry, "hnl-thumb")}<span class="hnl-text">'
        f'<span class="hnl-name" data-suffix="{entry.file.relative.suffix.lower()}">{escaped(entry.file.name)}</span>'
        f'<span class="hnl-line">{line}</span>'
        f'<span class="hnl-line hnl-one">{size_text(entry.size)}{steps}</span>'
        f"<span>{badge}{_folder(entry)}</span></span></button>"
    )


def _folder(entry: Entry) -> str:
    parent = entry.file.relative.parent.as_posix()
    return "" if parent == "." else f'<span class="hnl-badge hnl-dim">{escaped(parent, 40)}/</span>'


def _image(entry: Entry, kind: str) -> str:
    url = thumbnail_url(entry.path)
    if not url:
        letter = next((letter for letter in entry.file.name if letter.isalnum()), "?").upper()
        sign = "!" if entry.broken else letter
        hue = f"hnl-hue{int(entry.key[:2], 16) % 6}"
        return f'<span class="{kind} hnl-none {hue}" aria-hidden="true">{escaped(sign)}</span>'
    return f'<img class="{kind}" alt="" src="{url}">'


def headline(entry: Entry) -> str:
    """Return the image and name of one file, and its error."""
    head = f'<h3 class="hnl-title">{escaped(entry.label)}</h3>'
    if entry.broken:
        head += notice(f"This file cannot be used: {reason(entry)}", "bad")
    return f'<div class="hnl-details">{_image(entry, "hnl-large")}{head}</div>'


def details(entry: Entry, copies: Sequence[Entry], sha256: str) -> str:
    """Return a table of one file's contents."""
    info = entry.info
    rows = [("Name in the file", escaped(info.name, _LONGEST_VALUE)), *facts(info)] if info else []
    rows += _embedding_rows(entry.embedding) if entry.embedding is not None else []
    rows.append(("File", f"{size_text(entry.size)}, modified {_date(entry.modified)}"))
    rows.append(("Folder", escaped(entry.file.folder)))
    rows.append(("SHA-256", f"<code>{escaped(sha256)}</code>"))
    if info:
        rows.append(("Webui hash", f"<code>{escaped(sha256[:10])}</code> (2022: <code>{info.legacy_hash}</code>)"))
    if copies:
        names = [escaped(copy.label) for copy in copies[:_MOST_COPIES]]
        names += [f"and {len(copies) - _MOST_COPIES:,} more"] if len(copies) > _MOST_COPIES else []
        rows.append(("Same content", "<br>".join(names)))
    description = read_description(entry.path)
    rows += [("Description", escaped(description, 2000))] if description else []
    further = info.further if info else {}
    first = islice(further.items(), _MOST_VALUES)
    rows += [(escaped(key, 80), escaped(value, _LONGEST_VALUE)) for key, value in first]
    rows += [("…", f"{len(further) - _MOST_VALUES:,} more")] if len(further) > _MOST_VALUES else []
    return f'<div class="hnl-details">{table(rows)}</div>'


def _embedding_rows(info: EmbeddingInfo) -> list[tuple[str, str]]:
    embedding = info.embedding
    widths = " and ".join(f"{width}" for width in info.widths)
    trained = "unknown" if embedding.step is None else counted(embedding.step, "step")
    return [
        ("Kind", "textual-inversion embedding"),
        ("Word", escaped(embedding.name, _LONGEST_VALUE)),
        ("Fits", escaped(embedding.made_for)),
        ("Vectors", f"{embedding.count:,} of {widths} ({info.dtype})"),
        ("Checkpoint", escaped(embedding.sd_checkpoint_name or embedding.sd_checkpoint or "unknown", _LONGEST_VALUE)),
        ("Trained", trained),
    ]


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of labels and values; values are HTML."""
    body = "".join(f"<tr><th scope='row'>{label}</th><td>{cell}</td></tr>" for label, cell in rows)
    return f'<table class="hnl-table">{body}</table>'


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with headings; cells are HTML."""
    top = "".join(f"<th scope='col'>{escaped(text)}</th>" for text in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    lines = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="hnl-scroll"><table class="hnl-grid">{lines}</table></div>'


def reason(entry: Entry) -> str:
    """Return a file's error without the path that most messages begin with."""
    text = entry.problem or "not inspected yet"
    rest = text.removeprefix(str(entry.path))
    return text if rest == text else rest.lstrip(": ").removeprefix("is ")


def _fits(info: FileInfo) -> str:
    if not info.widths:
        return "any model"
    return ", ".join(info.made_for) or "unknown model"


def facts(info: FileInfo) -> list[tuple[str, str]]:
    """Return the rows of a file's contents; values are HTML."""
    known = as_text(info.checkpoint or "", 40)
    name = as_text(info.checkpoint_name or "", _LONGEST_VALUE)
    checkpoint = " ".join(filter(None, (name, f"({known})" if known else "")))
    return [
        ("Fits", escaped(_fits(info))),
        ("Widths", escaped(as_text(", ".join(info.scopes), _LONGEST_VALUE) or "see members")),
        ("Architecture", escaped(_structure(info))),
        ("Variant", escaped(f"{info.program}, {as_text(info.variant, 100)}; {info.format} ({info.container})")),
        ("Checkpoint", escaped(checkpoint or "unknown", _LONGEST_VALUE)),
        ("Trained", escaped("unknown" if info.step is None else counted(info.step, "step"))),
        ("Parameters", escaped(f"{info.parameters:,} ({', '.join(info.dtypes) or 'none'})")),
        *((("Members", "<br>".join(escaped(member.name) for member in info.members)),) if info.members else ()),
    ]


def _structure(info: FileInfo) -> str:
    return "composition" if info.architecture is None else str(info.architecture)


def _date(nanoseconds: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(nanoseconds / 1e9).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return "at an unknown time"
