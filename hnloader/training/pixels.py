"""Images as the model sees them: upright, on a background, scaled and cropped to a bucket."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hnloader.images import has_alpha
from hnloader.training.config import DataConfig
from hnloader.training.dataset import MAX_ASPECT_RATIO, TrainingImage, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

_BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (127, 127, 127)}
_ROWS = 256


@dataclass(frozen=True)
class Sample:
    """An image at its training size.

    Attributes:
        pixels: [3, height, width], float32, -1 to 1.
        mask: [1, height, width], float32, 0 to 1, or None.
        original: Width and height of the file in pixels.
        crop: Pixels cropped at the left and at the top, at the training size.
    """

    pixels: Tensor
    mask: Tensor | None
    original: tuple[int, int]
    crop: tuple[int, int]

    def flipped(self) -> Sample:
        """Return the mirrored image."""
        return Sample(self.pixels.flip(-1), None if self.mask is None else self.mask.flip(-1), self.original, self.crop)

    def shifted(self, right: int, down: int) -> Sample:
        """Return the image shifted by pixels, negative to the left or up; the edge is repeated."""

        def shift(values: Tensor) -> Tensor:
            height, width = values.shape[-2:]
            rows = (torch.arange(height) - down).clamp(0, height - 1)
            columns = (torch.arange(width) - right).clamp(0, width - 1)
            return values[:, rows][:, :, columns]

        return Sample(shift(self.pixels), None if self.mask is None else shift(self.mask), self.original, self.crop)


def training_size(size: tuple[int, int], config: DataConfig, resolution: int, multiple: int) -> tuple[int, int]:
    """Return the width and height that an image is trained at, in pixels."""
    return bucket(size, resolution, multiple) if config.buckets else (resolution, resolution)


def bucket(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """Return a size with about the same aspect ratio and at most the area of `resolution` squared.

    Args:
        size: Width and height in pixels.
        resolution: Side of a square image, a multiple of `multiple`.
        multiple: Width and height are multiples of this.
    """
    aspect = min(max(size[0] / size[1], 1 / MAX_ASPECT_RATIO), MAX_ASPECT_RATIO)
    area = resolution * resolution
    width = max(round(math.sqrt(area * aspect) / multiple), 1) * multiple
    height = max(int(area / width / multiple), 1) * multiple
    return width, height


def load_sample(entry: TrainingImage, config: DataConfig, resolution: int, multiple: int) -> Sample:
    """Read an image and scale it to its training size; the overlap is cropped evenly.

    Raises:
        HypernetworkError: The file was changed or removed after the dataset was read.
    """
    width, height = training_size(entry.size, config, resolution, multiple)
    image = open_image(entry.path).image
    size, alpha = image.size, image.getchannel("A") if config.masks and has_alpha(image) else None
    image = _on_background(image, config.background)
    fitted, crop = _fitted(image, width, height)
    del image  # a mask needs as much memory
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy()).permute(2, 0, 1) / 127.5 - 1
    mask_image = alpha
    if config.masks and entry.mask is not None:
        mask_image = open_image(entry.mask).image.convert("L").resize(size)
    mask = None
    if mask_image is not None:
        fitted_mask, _ = _fitted(mask_image, width, height)
        mask = torch.from_numpy(np.asarray(fitted_mask, dtype=np.float32).copy()).unsqueeze(0) / 255
    return Sample(pixels.contiguous(), mask, entry.size, crop)


def _on_background(image: Image, background: str) -> Image:
    from PIL import Image as pillow  # noqa: N813 - the class has the name of the module

    if image.mode != "RGBA":
        return image
    result = pillow.new("RGB", image.size)
    for top in range(0, image.height, _ROWS):  # all rows at once take twice the memory
        part = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        ground = pillow.new("RGBA", part.size, (*_BACKGROUNDS[background], 255))
        result.paste(pillow.alpha_composite(ground, part).convert("RGB"), (0, top))
    return result


def _fitted(image: Image, width: int, height: int) -> tuple[Image, tuple[int, int]]:
    """Scale an image to cover width x height; return its middle and the crop at the left and the top."""
    from PIL.Image import Resampling

    scale = max(width / image.width, height / image.height)
    wide, high = max(round(image.width * scale), width), max(round(image.height * scale), height)
    left, top = (wide - width) // 2, (high - height) // 2
    scaled = image.resize((wide, high), Resampling.LANCZOS)
    return scaled.crop((left, top, left + width, top + height)), (left, top)
