"""Small self-contained web pages: curves as SVG, images inside the page, nothing loaded from elsewhere."""

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


def page(title: str, lead: str, body: Iterable[str]) -> str:
    """A whole page. `body` is HTML; `title` and `lead` are text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>{text(title)}</h1><p class="lead">{text(lead)}</p>{"".join(body)}</body></html>\n'
    )


def text(value: object) -> str:
    """Text as HTML: whatever it holds, it is shown and does nothing."""
    return html.escape(str(value))


def section(title: str, *body: str) -> str:
    """A headline and HTML below it."""
    return f"<section><h2>{text(title)}</h2>{''.join(body)}</section>"


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """A table of text; numbers stand right."""
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    lines = [f"<tr>{head}</tr>"] if header else []
    for row in rows:
        cells = "".join(f"<td{_number_class(cell)}>{text(_shown(cell))}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def image_tag(image: Image, alt: str) -> str:
    """An image inside the page."""
    data = io.BytesIO()
    image.save(data, format="PNG")
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def figures(entries: Iterable[tuple[Image, str]]) -> str:
    """Images with their captions, in rows."""
    shown = (
        f"<figure>{image_tag(image, label)}<figcaption>{text(label)}</figcaption></figure>" for image, label in entries
    )
    return f'<div class="sheet">{"".join(shown)}</div>'


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str) -> str:
    """Lines over the same axes, y on a logarithmic scale where all are positive and differ by more than ten times.

    Args:
        lines: name -> (x, y) points, x rising; points that are not finite are left out.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return "<p>Nothing was measured.</p>"
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) > 10 * min(ys)
    scale = math.log10 if logarithmic else float
    low, high = scale(min(ys)), scale(max(ys))
    high = high if high > low else low + 1
    left, right = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - 10)
        return across, 10 + (high - scale(y)) / (high - low) * (_HEIGHT - _BOTTOM - 20)

    drawn = [_axes(left, right, x_label)]
    for step in range(5):
        level = low + (high - low) * step / 4
        value = 10**level if logarithmic else level
        _, y = place(left, value)
        drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for index, (name, points) in enumerate(kept.items()):
        color = _COLORS[index % len(_COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        drawn.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>')
        drawn.append(f'<text x="{_LEFT + 8 + 130 * index}" y="12" style="fill:{color}">{text(name)}</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(", ".join(kept))}">{"".join(drawn)}</svg>'
    )


def _axes(left: float, right: float, label: str) -> str:
    base = _HEIGHT - 8
    return (
        f'<text x="{_LEFT}" y="{base}">{left:,.0f}</text>'
        f'<text x="{_WIDTH}" y="{base}" text-anchor="end">{right:,.0f} {text(label)}</text>'
    )


def _number_class(value: object) -> str:
    return ' class="number"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
