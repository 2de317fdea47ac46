"""Embeddings in images, as webuis share them: in a PNG text chunk, and in the low bits of stripes at both sides.

The data is the keys of the webui's `.pt` as JSON, with tensors as {"TORCHTENSOR": nested lists}. The text chunk
`sd-ti-embedding` holds it in base64. In the pixels it is compressed by zlib: the low halves of the bytes are the
low four bits of a stripe at the left, the high halves those of a stripe at the right. Each stripe is xored with a fixed
random sequence, and a black column separates it from the image. The high four bits are decoration.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hnloader.embeddings.embedding import Embedding
from hnloader.errors import (
    CorruptFileError,
    HypernetworkError,
    UnknownFormatError,
    UnsupportedArchitectureError,
    install_advice,
)
from hnloader.formats.source import Source
from hnloader.formats.trees import canonical
from hnloader.image_containers import is_lossy_webp, png_rows
from hnloader.images import read_image, read_text
from hnloader.texts import shown
from hnloader.units import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Pixels = NDArray[np.uint8]

__all__ = ["card", "is_image", "json_keeps", "may_hold", "names_embedding", "read", "write"]

CHUNK = "sd-ti-embedding"
# 300 vectors of 1,024 values; a prompt has 75 tokens. Python takes some 20 bytes per byte of JSON.
MAX_TEXT = 8 << 20
MAX_IMAGE_SIZE = 64 << 20
MAX_PIXELS = 8_000_000
# Lists and mappings in the text: one per vector, and a few more.
_MOST_PARTS = 8_192
_CARD_SIZE = (512, 512)
# What `may_hold` reads of a file, and the rows of pixels that it decodes.
_BEGINNING = 64 << 10
_FIRST_ROWS = 16


def is_image(head: bytes) -> bool:
    """Return True for the first bytes of a PNG or WebP image."""
    return is_png(head) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def is_png(head: bytes) -> bool:
    """Return True for the first bytes of a PNG image."""
    return head.startswith(b"\x89PNG\r\n\x1a\n")


def may_hold(source: Source) -> bool:
    """Return False for an image without an embedding, as its first rows show. It takes about a millisecond.

    The first rows of both stripes are the beginning of the compressed data. Only `read` is certain of an image for
    which this returns True: a lossless WebP image, or one with black rows at the top.
    """
    head = source.read(0, min(source.size, _BEGINNING))
    try:
        if not is_png(head):
            return not is_lossy_webp(head)
        if read_text(head, CHUNK, longest=2 * MAX_TEXT) is not None:
            return True
        rows = png_rows(head, _FIRST_ROWS)
        if rows is None:
            return True
        pixels = _pixels_of(rows, source.label)
    except (CorruptFileError, struct.error, IndexError):
        return False
    cropped = _cropped(pixels)
    if len(cropped) == 0:
        return True
    data = _packed(cropped)
    try:
        text = zlib.decompressobj().decompress(data or b"", 1)
    except zlib.error:
        return False
    return data is not None and text in (b"", b"{")


def names_embedding(source: Source) -> bool:
    """Return True for a PNG image that begins the text chunk of an embedding, even if it is damaged."""
    head = source.read(0, min(source.size, _BEGINNING))
    return is_png(head) and f"{CHUNK}\0".encode() in head


def read(source: Source) -> dict[object, object]:
    """Return the keys that the image holds, with tensors as float32.

    Raises:
        UnknownFormatError: The image holds no embedding.
        CorruptFileError: The image is damaged, or too large for an embedding.
        HypernetworkError: Pillow or numpy is missing.
    """
    if source.size > MAX_IMAGE_SIZE:
        raise CorruptFileError(f"Found an image of {source.size:,} bytes. At most {MAX_IMAGE_SIZE:,} are read.")
    data = source.read(0, source.size)
    chunk = read_text(data, CHUNK, longest=2 * MAX_TEXT, label=source.label) if is_png(data) else None
    text = _from_chunk(chunk) if chunk is not None else _from_pixels(_pixels_of(data, source.label))
    del data
    if text is None:
        raise UnknownFormatError(f"{source.label} is an image without an embedding.")
    try:
        if text.count(b"[") + text.count(b"{") > _MOST_PARTS:
            raise ValueError(f"Expected at most {_MOST_PARTS:,} lists.")
        tree = json.loads(text, object_pairs_hook=_parse_object, parse_int=_parse_int)
    except (ValueError, TypeError, RuntimeError, RecursionError, OverflowError) as error:
        raise CorruptFileError(f"The embedding in the image is damaged ({error}). Get the .pt file.") from error
    if not isinstance(tree, dict) or "string_to_param" not in tree:
        raise UnknownFormatError(f"{source.label} is an image with other data than an embedding.")
    return tree


def write(tree: dict[str, object], path: Path, image: Image) -> None:
    """Write `image` as PNG with the keys of `tree` in a text chunk and in stripes at its sides."""
    from PIL.PngImagePlugin import PngInfo

    text = json.dumps(tree, default=_encode).encode()
    if len(text) > MAX_TEXT:
        raise UnsupportedArchitectureError(
            f"Found {len(text):,} bytes for an image. At most {MAX_TEXT:,} can be read: save it as .safetensors."
        )
    chunks = PngInfo()
    chunks.add_text(CHUNK, base64.b64encode(text).decode("ascii"))
    _with_stripes(image.convert("RGB"), zlib.compress(text, 9)).save(path, format="PNG", pnginfo=chunks)


def card(embedding: Embedding) -> Image:
    """Return a plain image with the name, vectors and steps of an embedding, for `write`."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", _CARD_SIZE, (38, 50, 66))
    draw = ImageDraw.Draw(image)
    lines = [embedding.name or "embedding", f"{counted(embedding.count, 'vector')} of {embedding.width}"]
    if embedding.step is not None:
        lines.append(counted(embedding.step, "step"))
    for row, (line, size) in enumerate(zip(lines, (48, 24, 24), strict=False)):
        font = ImageFont.load_default(size)
        draw.text((32, 32 + 72 * row), line[:200], fill=(240, 244, 248), font=font)
    return image


# -- text


def _from_chunk(chunk: str) -> bytes:
    try:
        text = base64.b64decode(chunk, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptFileError(f"The embedding in the image is damaged ({error}). Get the .pt file.") from error
    if len(text) > MAX_TEXT:
        raise CorruptFileError(f"The embedding in the image has {len(text):,} bytes. At most {MAX_TEXT:,} are read.")
    return text


def json_keeps(key: str, value: object) -> bool:
    """Return True if the JSON of an image keeps a key and a value with their types."""
    try:
        found = json.loads(json.dumps({key: value}), object_pairs_hook=_parse_object, parse_int=_parse_int)
    except (TypeError, ValueError, RecursionError):
        return False
    return canonical(found, id) == canonical({key: value}, id)


def _parse_object(pairs: list[tuple[str, Any]]) -> object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("A name appears twice.")
    if "TORCHTENSOR" not in found:
        return found
    vectors = found["TORCHTENSOR"]
    rows = vectors if isinstance(vectors, list) and vectors and isinstance(vectors[0], list) else [vectors]
    for row in rows:  # torch takes booleans, and lists in lists to any depth
        if not isinstance(row, list) or not {*map(type, row)} <= {int, float}:
            raise ValueError("Expected lists of numbers.")
    return torch.tensor(vectors, dtype=torch.float32)


def _parse_int(digits: str) -> float:
    """Return a whole number; a float beyond 20 digits, because older Pythons take minutes for a million digits."""
    return int(digits) if len(digits) < 20 else float(digits)


def _encode(value: object) -> object:
    if isinstance(value, Tensor):
        return {"TORCHTENSOR": value.float().tolist()}
    return shown(value)


# -- pixels


def _pixels_of(data: bytes, label: str) -> Pixels:
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise HypernetworkError(
            f"Reading an embedding from an image requires {error.name}. {install_advice('train')}. Or use the .pt file."
        ) from error

    image = read_image(data, {"PNG": MAX_PIXELS, "WEBP": MAX_PIXELS}, label=label).image
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _from_pixels(pixels: Pixels) -> bytes | None:
    """Return the text in the stripes at both sides, or None."""
    data = _packed(_cropped(pixels))
    if data is None:
        return None
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_TEXT)
    except zlib.error:
        return None  # an ordinary image with black columns
    if unpacker.unconsumed_tail:
        raise CorruptFileError(f"The embedding in the image unpacks to more than {MAX_TEXT:,} bytes. Get the .pt file.")
    return text if unpacker.eof else None


def _packed(pixels: Pixels) -> bytes | None:
    """Return the compressed text in the stripes at both sides of a cropped image, or None without stripes."""
    import numpy as np

    low: Pixels = np.bitwise_and(pixels, np.uint8(0x0F))
    # By rows first: numpy is slow along a short axis.
    black = np.flatnonzero(~np.any(np.any(low, axis=0), axis=1))
    if len(black) < 2:
        return None
    left, right = low[:, : black[0]], low[:, black[-1] + 1 :]
    if left.shape != right.shape or not 0 < left.size <= 2 * MAX_TEXT:
        return None
    packed: Pixels = _xored(right) * np.uint8(16) + _xored(left)
    return packed.tobytes()


def _cropped(pixels: Pixels) -> Pixels:
    """Crop edge rows and columns in which every pixel has a channel of zero."""
    import numpy as np

    lit: NDArray[np.bool_] = (pixels[:, :, 0] > 0) & (pixels[:, :, 1] > 0) & (pixels[:, :, 2] > 0)
    columns, rows = np.flatnonzero(np.max(lit, axis=0)), np.flatnonzero(np.max(lit, axis=1))
    if len(columns) == 0:
        return pixels[:0, :0]
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _with_stripes(image: Image, data: bytes) -> Image:
    import numpy as np
    from PIL import Image

    height = image.height
    # Whole columns of three channels, filled up with the beginning, which zlib ignores.
    count = -(-len(data) // (3 * height)) * 3 * height
    values = np.resize(np.frombuffer(data, np.uint8), count).reshape(height, -1, 3)
    left, right = _xored(values % 16), _xored(values // 16)
    # The high bits keep readers from cropping black columns and rows of the stripes.
    stripes = [Image.fromarray(stripe | 0x40) for stripe in (left, right)]
    width = stripes[0].width
    result = Image.new("RGB", (2 * width + 2 + image.width, height))
    result.paste(stripes[0], (0, 0))
    result.paste(image, (width + 1, 0))
    result.paste(stripes[1], (width + 1 + image.width + 1, 0))
    return result


def _xored(block: Pixels) -> Pixels:
    """Xor `block` with the low four bits of the sequence; twice returns the block."""
    import numpy as np

    sequence = _congruential(block.size)
    np.remainder(sequence, np.uint32(255), out=sequence)
    low = sequence.astype(np.uint8) & np.uint8(0x0F)
    result: Pixels = np.bitwise_xor(block, low.reshape(block.shape))
    return result


def _congruential(count: int) -> NDArray[np.uint32]:
    """Return the first `count` values of s -> (1664525 s + 1013904223) mod 2^32 after s = 0.

    k steps are one step with other constants, so the known part of the sequence doubles each time.
    """
    import numpy as np

    modulus = 1 << 32
    factor, increment = 1664525, 1013904223
    sequence = np.zeros(count, dtype=np.uint32)
    sequence[:1] = increment
    known = 1
    while known < count:
        more = min(known, count - known)
        # uint32 wraps, which is the remainder.
        np.multiply(sequence[:more], np.uint32(factor), out=sequence[known : known + more])
        sequence[known : known + more] += np.uint32(increment)
        increment = (factor * increment + increment) % modulus
        factor = factor * factor % modulus
        known += more
    return sequence
