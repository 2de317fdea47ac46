"""Draw images in a labeled grid, for sweeps and the demo. Requires Pillow."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hnloader.errors import HypernetworkError

_PAPER = (250, 250, 248)
_INK = (34, 34, 40)
_FAINT = (110, 110, 120)
_LINE = (222, 222, 218)
_FONTS = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf")


def labeled_grid(
    images: Sequence[Sequence[Image.Image | None]],
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    title: str | None = None,
    caption: str | None = None,
    groups: Sequence[tuple[str, int]] = (),
    cell: int | None = None,
) -> Image.Image:
    """Draw images in rows and columns with their labels.

    Args:
        images: Rows of images, one for each column. None leaves a place empty.
        columns: Labels above the columns.
        rows: Labels left of the rows. Long labels are wrapped.
        title: Headline. Default: none.
        caption: Smaller line below the title. Default: none.
        groups: Names above runs of columns, as (name, number of columns). Default: none.
        cell: Longest side of each image in pixels. Default: 192 for smaller images, else unchanged.

    Returns:
        An RGB image.

    Raises:
        ValueError: All places are empty, or labels and images differ in number.
    """
    if not any(image is not None for row in images for image in row):
        raise ValueError("Grid: all places are empty. Give at least one image.")
    if len(rows) != len(images) or any(len(row) != len(columns) for row in images):
        shape = f"{len(images)} rows of {', '.join(str(len(row)) for row in images)} images"
        raise ValueError(
            f"Grid: found {len(rows)} row labels and {len(columns)} column labels for {shape}. Label each."
        )
    if groups and sum(count for _, count in groups) != len(columns):
        covered = sum(count for _, count in groups)
        raise ValueError(f"Grid: the groups cover {covered} of {len(columns)} columns. Cover each once.")
    shown = [[image and _resized(image, cell) for image in row] for row in images]
    return _Layout(shown, list(columns), list(rows), title, caption, list(groups)).render()


def _resized(image: Image.Image, cell: int | None) -> Image.Image:
    longest = max(image.size)
    side = cell if cell is not None else max(longest, 192)
    if side == longest:
        return image.convert("RGB")
    size = (max(1, round(image.width * side / longest)), max(1, round(image.height * side / longest)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1, as in AUTOMATIC1111's webui, has no scalable font
        return _installed_font(size)


def _installed_font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font of the system or of matplotlib, which every gradio 3 needs."""
    matplotlib = importlib.util.find_spec("matplotlib")
    folders = list(matplotlib.submodule_search_locations or ()) if matplotlib is not None else []
    places = [Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" for folder in folders]
    for name in (*_FONTS, *map(str, places)):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    raise HypernetworkError("Labels: found no font. Install Pillow 10.1 or newer, or DejaVuSans.ttf.")


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> str:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


class _Layout:
    """Measures a grid from its images, then draws it."""

    def __init__(
        self,
        images: list[list[Image.Image | None]],
        columns: list[str],
        rows: list[str],
        title: str | None,
        caption: str | None,
        groups: list[tuple[str, int]],
    ) -> None:
        self.images, self.groups = images, groups
        self.width = max(image.width for row in images for image in row if image is not None)
        self.heights = [max((image.height for image in row if image is not None), default=0) for row in images]
        scale = max(1.0, self.width / 256)
        self.small, self.medium, self.large = (_font(round(size * scale)) for size in (14, 16, 24))
        self.gap = round(10 * scale)
        self.margin = round(28 * scale)
        self.line = round(22 * scale)
        label_width = min(self.width, max(self.small.getlength(text) for text in rows)) if any(rows) else 0
        self.rows = [_wrapped(text, self.small, max(label_width, 1)) for text in rows]
        self.columns = [_wrapped(text, self.medium, self.width) for text in columns]
        self.left = self.margin + round(label_width) + (2 * self.gap if label_width else 0)
        self.title, self.caption = title, caption
        full = self._column(len(columns) - 1) + self.width - self.margin
        self.caption_text = _wrapped(caption, self.small, full) if caption else ""
        self.header = self.margin
        self.title_at = self.header
        self.header += round(36 * scale) if title else 0
        self.caption_at = self.header
        self.header += self.line * (self.caption_text.count("\n") + 1) + self.gap if caption else 0
        self.groups_at = self.header
        self.header += round(30 * scale) if groups else 0
        self.header += self.line * max(text.count("\n") + 1 for text in self.columns) + self.gap // 2

    def _column(self, index: int) -> int:
        """Return the left edge of a column; gaps between groups are wider."""
        x = self.left + index * (self.width + self.gap)
        start = 0
        for _, count in self.groups[:-1]:
            start += count
            x += 2 * self.gap if index >= start else 0
        return x

    def render(self) -> Image.Image:
        last = len(self.columns) - 1
        width = self._column(last) + self.width + self.margin
        height = self.header + sum(self.heights) + self.gap * (len(self.heights) - 1) + self.margin
        canvas = Image.new("RGB", (width, height), _PAPER)
        pen = ImageDraw.Draw(canvas)
        if self.title:
            pen.text((self.margin, self.title_at), self.title, _INK, self.large)
        if self.caption_text:
            pen.multiline_text((self.margin, self.caption_at), self.caption_text, _FAINT, self.small)
        self._draw_groups(pen)
        for index, text in enumerate(self.columns):
            middle = self._column(index) + self.width / 2
            position = (middle, self.header - self.gap // 2)
            pen.multiline_text(position, text, _INK, self.medium, anchor="md", align="center")
        y = self.header
        for label, row, row_height in zip(self.rows, self.images, self.heights, strict=True):
            pen.multiline_text((self.margin, y + row_height / 2), label, _INK, self.small, anchor="lm")
            for index, image in enumerate(row):
                if image is None:
                    continue
                x = self._column(index) + (self.width - image.width) // 2
                top = y + (row_height - image.height) // 2
                canvas.paste(image, (x, top))
                pen.rectangle((x - 1, top - 1, x + image.width, top + image.height), outline=_LINE)
            y += row_height + self.gap
        return canvas

    def _draw_groups(self, pen: ImageDraw.ImageDraw) -> None:
        start = 0
        for name, count in self.groups:
            left, right = self._column(start), self._column(start + count - 1) + self.width
            text_y = self.groups_at
            pen.text(((left + right) / 2, text_y), name, _INK, self.medium, anchor="ma")
            y = text_y + round(self.line * 1.1)
            pen.line((left, y, right, y), fill=_LINE, width=2)
            start += count
