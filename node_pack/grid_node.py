"""The node that draws images side by side."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from hnloader.grids import labeled_grid


class HypernetworkGrid:
    """Draw the images of several strengths side by side."""

    DESCRIPTION = "Draws images side by side with a label above each, for example those of several strengths."
    CATEGORY = "image/hypernetworks"
    FUNCTION = "draw"
    INPUT_IS_LIST = True
    RETURN_TYPES = ("IMAGE",)
    SEARCH_ALIASES = ("image grid", "xy plot", "contact sheet")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "A batch of images becomes a column."}),
                "labels": ("STRING", {"forceInput": True, "tooltip": "One for each column."}),
            },
            "optional": {"title": ("STRING", {"default": "", "tooltip": "Headline of the grid."})},
        }

    def draw(self, images: list[Tensor], labels: list[str], title: list[str] | None = None) -> tuple[Tensor]:
        """Return the grid; images is a list of batches [count, height, width, channels] with values from 0 to 1."""
        columns = [[_image(one) for one in batch] for batch in images]
        if len(columns) != len(labels):
            raise ValueError(f"Grid: found {len(columns)} images and {len(labels)} labels. Connect one for each.")
        rows = max(map(len, columns))
        cells = [[column[row] if row < len(column) else None for column in columns] for row in range(rows)]
        names = [f"{row + 1}" for row in range(rows)] if rows > 1 else [""]
        heading = (title or [""])[0] or None
        drawn = numpy.asarray(labeled_grid(cells, columns=labels, rows=names, title=heading), dtype=numpy.float32)
        return (torch.from_numpy(drawn / 255)[None],)


def _image(values: Tensor) -> Image.Image:
    pixels = (values[..., :3].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels)
