"""Embeddings in pictures, as webuis share them: in a PNG text chunk, and in the low bits of stripes at both sides.

The data are the keys of the webui's `.pt` as JSON, a tensor being {"TORCHTENSOR": nested lists}. The text chunk
`sd-ti-embedding` has them in base64. In the pixels they are compressed by zlib; the lower halves of the bytes
are the low four bits of a stripe at the left, the upper halves those of one at the right, each xored with a fixed
random sequence and each set off from the picture by a black column. The high four bits are free for decoration.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hnloader.embeddings.embedding import Embedding
from hnloader.errors import CorruptFileError, HypernetworkError, UnknownFormatError
from hnloader.formats.source import Source
from hnloader.formats.trees import canonical

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Pixels = NDArray[np.uint8]

CHUNK = "sd-ti-embedding"
# 4,096 vectors of 1,024 values take some 90 MB as text; those that are trained have at most a few dozen.
MAX_TEXT = 64 << 20
MAX_PICTURE_SIZE = 64 << 20
MAX_PIXELS = 64_000_000
_CARD_SIZE = (512, 512)


def is_picture(head: bytes) -> bool:
    """True for the first bytes of a PNG or WebP picture."""
    return head.startswith(b"\x89PNG\r\n\x1a\n") or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def read(source: Source) -> dict[object, object]:
    """The keys that the picture holds, tensors as float32.

    Raises:
        UnknownFormatError: there is no embedding in it.
        CorruptFileError: it is damaged, or too large to be an embedding.
        HypernetworkError: Pillow or numpy is not installed.
    """
    if source.size > MAX_PICTURE_SIZE:
        raise CorruptFileError(f"a picture of {source.size:,} bytes; at most {MAX_PICTURE_SIZE:,} are read")
    with _opened(source.read(0, source.size)) as image:
        chunk = getattr(image, "text", {}).get(CHUNK)
        text = _from_chunk(chunk) if chunk is not None else _from_pixels(_pixels_of(image))
    if text is None:
        raise UnknownFormatError(f"{source.label} is a picture without an embedding in it")
    try:
        tree = json.loads(text, object_pairs_hook=_tensor)
    except (ValueError, TypeError, RuntimeError, RecursionError, OverflowError) as error:
        raise CorruptFileError(f"the embedding in the picture is damaged ({error})") from error
    if not isinstance(tree, dict) or "string_to_param" not in tree:
        raise UnknownFormatError(f"{source.label} is a picture whose embedded data are no embedding")
    return tree


def write(tree: dict[str, object], path: Path, picture: Image) -> None:
    """Write `picture` as PNG with the keys of `tree` in its text chunk and in stripes at its sides."""
    from PIL.PngImagePlugin import PngInfo

    text = json.dumps(tree, default=_listed).encode()
    chunks = PngInfo()
    chunks.add_text(CHUNK, base64.b64encode(text).decode("ascii"))
    _with_stripes(picture.convert("RGB"), zlib.compress(text, 9)).save(path, format="PNG", pnginfo=chunks)


def card(embedding: Embedding) -> Image:
    """A plain picture with the embedding's name, vectors and steps, for `write`."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", _CARD_SIZE, (38, 50, 66))
    draw = ImageDraw.Draw(image)
    lines = [embedding.name or "embedding", f"{embedding.count} vectors of {embedding.width}"]
    if embedding.step is not None:
        lines.append(f"{embedding.step:,} steps")
    for row, (line, size) in enumerate(zip(lines, (48, 24, 24), strict=False)):
        font = ImageFont.load_default(size)
        draw.text((32, 32 + 72 * row), line[:200], fill=(240, 244, 248), font=font)
    return image


# -- text


def _from_chunk(chunk: str) -> bytes:
    if len(chunk) > MAX_TEXT:
        raise CorruptFileError(f"the embedding in the picture has {len(chunk):,} characters; {MAX_TEXT:,} are read")
    try:
        return base64.b64decode(chunk, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptFileError(f"the embedding in the picture is damaged ({error})") from error


def keeps(key: str, value: object) -> bool:
    """Return whether a picture's JSON keeps a key and a value with their types; tensors are none of them."""
    try:
        found = json.loads(json.dumps({key: value}), object_pairs_hook=_tensor)
    except (TypeError, ValueError, RecursionError):
        return False
    return canonical(found, id) == canonical({key: value}, id)


def _tensor(pairs: list[tuple[str, Any]]) -> object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    if "TORCHTENSOR" in found:
        return torch.tensor(found["TORCHTENSOR"], dtype=torch.float32)
    return found


def _listed(value: object) -> object:
    if isinstance(value, Tensor):
        return {"TORCHTENSOR": value.float().tolist()}
    return str(value)


# -- pixels


def _opened(data: bytes) -> Image:
    try:
        import numpy  # noqa: F401
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise HypernetworkError(
            f"embeddings in pictures need {error.name}: pip install 'hnloader[train]', or use the .pt file"
        ) from error
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "WEBP"))
        if image.width * image.height > MAX_PIXELS:
            raise CorruptFileError(f"a picture of {image.width} x {image.height} pixels is too large for an embedding")
        image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"the picture is damaged ({error}); download it again") from error
    return image


def _pixels_of(image: Image) -> Pixels:
    import numpy as np

    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _from_pixels(pixels: Pixels) -> bytes | None:
    """The text in the stripes at both sides; None when there are none."""
    import numpy as np

    low: Pixels = np.bitwise_and(_cropped(pixels), np.uint8(0x0F))
    black = np.flatnonzero(low.sum(axis=(0, 2)) == 0)
    if len(black) < 2:
        return None
    left, right = low[:, : black[0]], low[:, black[-1] + 1 :]
    if left.shape != right.shape or left.size == 0:
        return None
    data = (_scrambled(right) * np.uint8(16) + _scrambled(left)).astype(np.uint8).tobytes()
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_TEXT)
    except zlib.error:
        return None  # an ordinary picture that happens to have black columns
    if unpacker.unconsumed_tail:
        raise CorruptFileError(f"the embedding in the picture unpacks to more than {MAX_TEXT:,} bytes")
    return text if unpacker.eof else None


def _cropped(pixels: Pixels) -> Pixels:
    """Without the rows and columns at the edges where every pixel has a channel of zero."""
    import numpy as np

    lit: NDArray[np.bool_] = np.min(pixels, axis=2) > 0
    columns, rows = np.flatnonzero(np.max(lit, axis=0)), np.flatnonzero(np.max(lit, axis=1))
    if len(columns) == 0:
        return pixels[:0, :0]
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _with_stripes(picture: Image, data: bytes) -> Image:
    import numpy as np
    from PIL import Image

    height = picture.height
    # Whole columns of three channels; the end is filled up with the beginning, which zlib does not read.
    count = -(-len(data) // (3 * height)) * 3 * height
    values = np.resize(np.frombuffer(data, np.uint8), count).reshape(height, -1, 3)
    left, right = _scrambled(values % 16), _scrambled(values // 16)
    # The high bits mark what belongs to the stripes: readers cut off columns and rows that are black.
    stripes = [Image.fromarray(stripe | 0x40) for stripe in (left, right)]
    width = stripes[0].width
    result = Image.new("RGB", (2 * width + 2 + picture.width, height))
    result.paste(stripes[0], (0, 0))
    result.paste(picture, (width + 1, 0))
    result.paste(stripes[1], (width + 1 + picture.width + 1, 0))
    return result


def _scrambled(block: Pixels) -> Pixels:
    """`block` xored with the low four bits of the sequence; doing it twice gives the block back."""
    import numpy as np

    sequence = (_congruential(block.size) % 255).astype(np.uint8) & 0x0F
    result: Pixels = np.bitwise_xor(block, sequence.reshape(block.shape))
    return result


def _congruential(count: int) -> NDArray[np.uint64]:
    """The first `count` values of s -> (1664525 s + 1013904223) mod 2^32 from s = 0, which is not among them.

    k steps at once are another such step, so the sequence is doubled until it is long enough.
    """
    import numpy as np

    modulus = 1 << 32
    factor, increment = 1664525, 1013904223
    sequence = np.array([increment], dtype=np.uint64)
    while len(sequence) < count:
        sequence = np.concatenate(
            [sequence, (sequence * np.uint64(factor) + np.uint64(increment)) % np.uint64(modulus)]
        )
        increment = (factor * increment + increment) % modulus
        factor = factor * factor % modulus
    return sequence[:count]
