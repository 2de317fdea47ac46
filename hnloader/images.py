"""Open image files from strangers within limits. No other module opens an image.

Pillow picks a decoder by a file's first bytes: PostScript starts Ghostscript. And a decoder reads everything in a file:
metadata that unpacks to gigabytes, a million empty chunks, thousands of passes over the pixels. So `read_image` allows
named formats only, checks the declared size first, and gives Pillow the first image without metadata. `read_text` reads
the text of an image without Pillow.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from hnloader.errors import CorruptFileError, HypernetworkError, UnknownFormatError, install_advice
from hnloader.formats.source import open_source
from hnloader.image_containers import CutImage, cut, format_of, text_in

if TYPE_CHECKING:
    from PIL.Image import Image

# Allowed formats, with the largest number of pixels. Pillow takes 4 bytes for a pixel, and 16 for WebP.
STILL: Mapping[str, int] = MappingProxyType(
    {"PNG": 40_000_000, "JPEG": 120_000_000, "WEBP": 10_000_000, "GIF": 40_000_000}
)
# Photos to train on are larger than previews, and have more formats.
PHOTOS: Mapping[str, int] = MappingProxyType(
    {"PNG": 50_500_000, "JPEG": 120_000_000, "WEBP": 25_000_000, "GIF": 40_000_000, "BMP": 50_500_000}
    | {"TIFF": 50_500_000}
)
# Images that the training writes: previews of 40 steps side by side.
OWN_PREVIEWS: Mapping[str, int] = MappingProxyType({"PNG": 170_000_000})
_WITH_TEXT = ("PNG", "JPEG", "WEBP")
LARGEST_FILE = 512 << 20
# Bytes of an image's text; prompts have a few thousand.
LONGEST_TEXT = 1 << 20

# Memory for images that take more than 4 bytes per pixel: 24 million pixels with transparency fit.
_MOST_BYTES = 196_000_000
# A JPEG that takes more memory is decoded at a fraction of its size.
_MOST_JPEG_BYTES = 180_000_000


@dataclass(frozen=True)
class ReadImage:
    """The first image of a file.

    Attributes:
        image: The image, upright, RGB or RGBA. A large JPEG may be smaller than `size`.
        size: Width and height of the image in the file, upright, in pixels.
        frames: Number of images in the file.
    """

    image: Image
    size: tuple[int, int]
    frames: int


def read_image(
    given: str | os.PathLike[str] | bytes,
    formats: Mapping[str, int] = STILL,
    *,
    shortest: int | None = None,
    label: str = "The image",
) -> ReadImage:
    """Read the first image of a file.

    Args:
        given: Path or content of the file.
        formats: Pillow's names of the allowed formats, with the largest number of pixels.
        shortest: Pixels that each side needs. A larger JPEG may be decoded at a fraction of its size.
        label: Name for messages if the content is given.

    Returns:
        The image, and its size in the file.

    Raises:
        UnknownFormatError: The file is of another format.
        CorruptFileError: It is damaged, or too large.
        HypernetworkError: It cannot be opened, or Pillow is not installed.
    """
    label, data = _data_of(given, label)
    kind = _kind_in(formats, data, label)
    with _labeled(label):
        part = cut(data, kind)
        del data
        return _decoded(part, kind, formats[kind], shortest)


def read_text(
    given: str | os.PathLike[str] | bytes, key: str, *, longest: int = LONGEST_TEXT, label: str = "The image"
) -> str | None:
    """Read a text of an image without its pixels.

    Args:
        given: Path or content of the file.
        key: Key of a PNG text chunk. JPEG and WebP files have one text, the EXIF user comment.
        longest: Largest size of the text in bytes.
        label: Name for messages if the content is given.

    Returns:
        The text, or None without a text.

    Raises:
        UnknownFormatError: The file is of another format.
        CorruptFileError: It is damaged, or the text is too long.
        HypernetworkError: It cannot be opened.
    """
    label, data = _data_of(given, label)
    kind = _kind_in(_WITH_TEXT, data, label)
    with _labeled(label):
        return text_in(data, kind, key.encode("latin-1"), longest)


def is_image(head: bytes) -> bool:
    """Return True for the first bytes of an image that `read_text` reads."""
    return format_of(head[:16]) in _WITH_TEXT


@contextmanager
def _labeled(label: str) -> Iterator[None]:
    """Put the label before messages about the content."""
    try:
        yield
    except CorruptFileError as error:
        raise CorruptFileError(f"{label}: {error}") from error
    except (struct.error, IndexError) as error:
        raise CorruptFileError(f"{label}: the image is cut off. Copy or download it again.") from error


def _kind_in(formats: Iterable[str], data: bytes, label: str) -> str:
    kind = format_of(data[:16])
    if kind not in formats:
        found = f"an image of the kind {kind}" if kind else "a file of another kind"
        raise UnknownFormatError(f"{label}: found {found}. Use an image of these kinds: {', '.join(formats)}.")
    return kind


def _data_of(given: str | os.PathLike[str] | bytes, label: str) -> tuple[str, bytes]:
    if isinstance(given, bytes):
        return label, given
    with open_source(given) as source:
        if source.size > LARGEST_FILE:
            raise CorruptFileError(
                f"{source.label}: found {source.size:,} bytes. Use an image of at most {LARGEST_FILE:,} bytes."
            )
        return source.label, source.read(0, source.size)


def _decoded(part: CutImage, kind: str, most_pixels: int, shortest: int | None) -> ReadImage:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise HypernetworkError(f"Reading images requires Pillow. {install_advice('train')}.") from error

    width, height = part.size
    pixels = width * height
    if not 0 < pixels <= most_pixels:
        raise CorruptFileError(f"{width} x {height} pixels. Use an image of at most {most_pixels:,} pixels.")
    turn = part.turn
    try:
        image: Image.Image = Image.open(io.BytesIO(part.data), formats=(kind,))
        if image.size != part.size:
            raise CorruptFileError(f"{width} x {height} declared pixels differ from the content. Download it again.")
        mode = "RGBA" if has_alpha(image) else "RGB"
        each = _BYTES.get(image.mode, 4)
        if mode != image.mode or mode == "RGBA" or turn in _TURNS:  # a second copy, also to resize transparency
            each += 1 if kind == "WEBP" else 4
        if kind == "JPEG":
            _draft(image, part, each, shortest)
        elif pixels * each + part.extra > (4 * most_pixels if each == 4 else min(4 * most_pixels, _MOST_BYTES)):
            raise CorruptFileError(
                f"{width} x {height} pixels in a form that takes much memory. Make the image smaller."
            )
        image.load()
        image = image if image.mode == mode else image.convert(mode)
    except CorruptFileError:
        raise
    except Exception as error:  # Pillow's decoders raise any kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CorruptFileError(f"Damaged image ({reason}). Copy or download it again.") from error
    image.info = {}
    size = (height, width) if turn in (5, 6, 7, 8) else (width, height)
    if turn in _TURNS:
        image = image.transpose(getattr(Image.Transpose, _TURNS[turn]))
    return ReadImage(image, size, part.frames)


def _draft(image: Image, part: CutImage, each: int, shortest: int | None) -> None:
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size if it is too large, or larger than needed."""
    width, height = part.size
    scale = 1
    while scale < 8 and (
        (width // scale) * (height // scale) * each + part.extra > _MOST_JPEG_BYTES
        or (shortest is not None and min(width, height) // (2 * scale) >= shortest)
    ):
        scale *= 2
    if scale > 1:
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def has_alpha(image: Image) -> bool:
    """Return True for an image with a transparency channel or color."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


# Bytes per pixel in Pillow; 4 for other modes.
_BYTES: Mapping[str, int] = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}
# EXIF's orientations as Pillow's methods.
_TURNS: Mapping[int, str] = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
