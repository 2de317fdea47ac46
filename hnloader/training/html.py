"""Self-contained HTML reports: tables, images inside the page and curves as SVG."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #22222a; --faint: #6e6e78; --line: #dedeDA; --paper: #fafaf8; --bar: #eeeeea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ec; --faint: #9a9aa4; --line: #3a3a42; --paper: #1b1b20; --bar: #26262c; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p.lead { color: var(--faint); margin: 0 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--faint); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; } svg text { fill: var(--faint); font: 11px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } pre { background: var(--bar); padding: 1rem; overflow: auto; font-size: 13px; }
.sheet { display: flex; flex-wrap: wrap; gap: .75rem; } .sheet figure { margin: 0; width: 8rem; }
.sheet figcaption { font-size: 12px; color: var(--faint); overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--faint); }
"""
_COLORS = ("#3b6fd4", "#d9822b", "#2e9e6b", "#b04a8f")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 240, 56, 28

text = html.escape


def page(title: str, lead: str, body: Iterable[str]) -> str:
    """Return a whole page; `body` is HTML, the rest is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{text(title)}</h1><p class="lead">{text(lead)}</p>{"".join(body)}</body></html>\n'
    )


def section(title: str, *body: str) -> str:
    """Return HTML below a heading."""
    return f"<section><h2>{text(title)}</h2>{''.join(body)}</section>"


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Return a table of text; numbers are right-aligned."""
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    lines = [f"<tr>{head}</tr>"] if header else []
    lines += [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def image_tag(image: Image, alt: str) -> str:
    """Return an image inside the page."""
    data = io.BytesIO()
    image.save(data, format="PNG")
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def figures(entries: Iterable[tuple[Image, str]]) -> str:
    """Return images with captions, in rows."""
    shown = (
        f"<figure>{image_tag(image, label)}<figcaption>{text(label)}</figcaption></figure>" for image, label in entries
    )
    return f'<div class="sheet">{"".join(shown)}</div>'


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str) -> str:
    """Return lines over common axes; y is logarithmic for positive values that differ by more than ten times.

    Args:
        lines: Name -> (x, y) points, x ascending. Points that are not finite are skipped.
        x_label: The name of x.
    """
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return "<p>No data.</p>"
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) > 10 * min(ys)
    scale = math.log10 if logarithmic else float
    low, high = scale(min(ys)), scale(max(ys))
    high = high if high > low else low + 1
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x: float, scaled: float) -> tuple[float, float]:
        across = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - 10)
        return across, 10 + (high - scaled) / (high - low) * (_HEIGHT - _BOTTOM - 20)

    base = _HEIGHT - 8
    drawn = [
        f'<text x="{_LEFT}" y="{base}">{left:,.0f}</text>',
        f'<text x="{_WIDTH}" y="{base}" text-anchor="end">{right:,.0f} {text(x_label)}</text>',
    ]
    for tick in range(5):
        level = low + (high - low) * tick / 4
        _, y = place(left, level)
        drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        value = 10**level if logarithmic else level
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for index, (name, points) in enumerate(finite.items()):
        color = _COLORS[index % len(_COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(x, scale(y)) for x, y in points))
        drawn.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>')
        drawn.append(f'<text x="{_LEFT + 8 + 130 * index}" y="12" style="fill:{color}">{text(name)}</text>')
    label = text(", ".join(finite))
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"<td>{text(str(value))}</td>"
    return f'<td class="number">{f"{value:.4g}" if isinstance(value, float) else f"{value:,}"}</td>'
