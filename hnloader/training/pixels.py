"""Images as the model sees them: upright, on a background, cut to a size of its grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hnloader.images import has_alpha
from hnloader.training.config import DataConfig
from hnloader.training.dataset import MOST_STRETCHED, TrainingImage, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (127, 127, 127)}
_ROWS = 256


@dataclass(frozen=True)
class Sample:
    """An image at the size that it is trained at.

    Attributes:
        pixels: [3, height, width], float32 from -1 to 1.
        mask: [1, height, width], float32 from 0 to 1, or None.
        original: width and height of the file in pixels.
        crop: how many pixels were cut off at the left and at the top, at the trained size.
    """

    pixels: Tensor
    mask: Tensor | None
    original: tuple[int, int]
    crop: tuple[int, int]


def bucket(size: tuple[int, int], resolution: int, grain: int) -> tuple[int, int]:
    """The size, in multiples of `grain`, that an image of `size` is trained at.

    Its shape stays about the same, its area about `resolution` squared and never more.

    Args:
        size: width and height in pixels.
        resolution: side of a square image, a multiple of `grain`.
        grain: pixels.
    """
    aspect = min(max(size[0] / size[1], 1 / MOST_STRETCHED), MOST_STRETCHED)
    area = resolution * resolution
    width = max(round(math.sqrt(area * aspect) / grain), 1) * grain
    height = max(int(area / width / grain), 1) * grain
    return width, height


def prepare(entry: TrainingImage, config: DataConfig, resolution: int, grain: int) -> Sample:
    """Read an image and bring it to its size; scaled by area-true filtering, what overlaps is cut evenly.

    Raises:
        HypernetworkError: The file was changed or removed since it was looked at.
    """
    width, height = bucket(entry.size, resolution, grain) if config.buckets else (resolution, resolution)
    image = open_image(entry.path).image
    size, alpha = image.size, image.getchannel("A") if config.masks and has_alpha(image) else None
    image = _flattened(image, config.background)
    fitted, crop = _fitted(image, width, height)
    del image  # a mask is as large
    mask = _mask(entry, size, alpha, config)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy()).permute(2, 0, 1) / 127.5 - 1
    kept = None
    if mask is not None:
        shape, _ = _fitted(mask, width, height)
        kept = torch.from_numpy(np.asarray(shape, dtype=np.float32).copy()).unsqueeze(0) / 255
    return Sample(pixels.contiguous(), kept, entry.size, crop)


def moved(sample: Sample, right: int, down: int) -> Sample:
    """The image moved by so many pixels, to the left or up where negative; the edge that comes free is repeated."""

    def move(values: Tensor) -> Tensor:
        height, width = values.shape[-2:]
        rows = (torch.arange(height) - down).clamp(0, height - 1)
        columns = (torch.arange(width) - right).clamp(0, width - 1)
        return values[:, rows][:, :, columns]

    mask = None if sample.mask is None else move(sample.mask)
    return Sample(move(sample.pixels), mask, sample.original, sample.crop)


def _mask(image: TrainingImage, size: tuple[int, int], alpha: Image | None, config: DataConfig) -> Image | None:
    if not config.masks:
        return None
    return alpha if image.mask is None else open_image(image.mask).image.convert("L").resize(size)


def _flattened(image: Image, background: str) -> Image:
    from PIL import Image as pillow  # noqa: N813 - the class has the module's name

    if image.mode != "RGBA":
        return image
    result = pillow.new("RGB", image.size)
    for top in range(0, image.height, _ROWS):  # all at once takes twice the memory
        part = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        ground = pillow.new("RGBA", part.size, (*BACKGROUNDS[background], 255))
        result.paste(pillow.alpha_composite(ground, part).convert("RGB"), (0, top))
    return result


def _fitted(image: Image, width: int, height: int) -> tuple[Image, tuple[int, int]]:
    """Scaled to cover width x height, the middle kept; and what was cut at the left and the top."""
    from PIL.Image import Resampling

    scale = max(width / image.width, height / image.height)
    wide, high = max(round(image.width * scale), width), max(round(image.height * scale), height)
    left, top = (wide - width) // 2, (high - height) // 2
    scaled = image.resize((wide, high), Resampling.LANCZOS)
    return scaled.crop((left, top, left + width, top + height)), (left, top)
