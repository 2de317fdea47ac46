"""Image files of strangers, opened within limits.

Pillow picks a decoder by a file's first bytes, whatever its name: PostScript starts Ghostscript. And a decoder reads
all that a file holds: metadata that unpack to gigabytes, a million empty chunks, thousands of passes over the pixels.
So `read_image` names the formats that a file may be, looks at the declared size first, and hands Pillow the first
image alone, without metadata. `read_text` reads the text of an image without Pillow. No other code opens an image.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from hnloader.errors import CorruptFileError, HypernetworkError, UnknownFormatError
from hnloader.formats.source import open_source

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats that a place reads, with the most pixels of each. Pillow takes 4 bytes for a pixel, and 16 for one of WebP.
STILL: Mapping[str, int] = MappingProxyType(
    {"PNG": 40_000_000, "JPEG": 120_000_000, "WEBP": 10_000_000, "GIF": 40_000_000}
)
# Photos to train on are larger than previews, and of more formats.
PHOTOS: Mapping[str, int] = MappingProxyType(
    {"PNG": 50_500_000, "JPEG": 120_000_000, "WEBP": 25_000_000, "GIF": 40_000_000, "BMP": 50_500_000}
    | {"TIFF": 50_500_000}
)
# What a training itself writes: previews of 40 steps side by side.
OWN_PREVIEWS: Mapping[str, int] = MappingProxyType({"PNG": 170_000_000})
LARGEST_FILE = 512 << 20
# Characters of an image's text; prompts have a few thousand.
LONGEST_TEXT = 1 << 20

_MOST_CHUNKS = 100_000
# What images may take that need more than 4 bytes for a pixel: 24 million pixels with transparency are read.
_MOST_BYTES = 196_000_000
# A JPEG file that takes more memory is decoded at a fraction of its size.
_MOST_JPEG_BYTES = 180_000_000
# What the decoder of a JPEG file with several passes keeps, and what all its passes look at.
_MOST_BUFFERED_SAMPLES = 80_000_000
_MOST_PASSED_SAMPLES = 1_200_000_000
_MOST_STRIPS = 65_536
_LARGEST_TILE = 1 << 22


@dataclass(frozen=True)
class ReadImage:
    """An image file as it was read.

    Attributes:
        image: Its first frame, upright, RGB or RGBA. A large JPEG may be smaller than `size`.
        size: Width and height of the file's image in pixels, upright.
        frames: How many images the file holds.
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
        given: A path, or what the file holds.
        formats: Pillow's names of the formats that it may be, with the most pixels of each.
        shortest: Pixels that each side needs; a JPEG may be decoded at a fraction of its size down to it.
        label: What messages call what is given as bytes.

    Returns:
        The image, and what is known of its file.

    Raises:
        UnknownFormatError: The file is of another format.
        CorruptFileError: It is damaged, or too large.
        HypernetworkError: It cannot be opened, or Pillow is not installed.
    """
    label, data = _data_of(given, label)
    kind = _format_of(data[:16])
    if kind not in formats:
        raise UnknownFormatError(f"{label}: found {_found(kind)}. Use an image of these kinds: {', '.join(formats)}.")
    try:
        cut = _CUTTERS[kind](data)
        del data
        return _decoded(cut, kind, formats[kind], shortest)
    except CorruptFileError as error:
        raise CorruptFileError(f"{label}: {error}") from error
    except (struct.error, IndexError) as error:
        raise CorruptFileError(f"{label}: the image is cut off. Copy or download it again.") from error


def read_text(
    given: str | os.PathLike[str] | bytes, key: str, *, longest: int = LONGEST_TEXT, label: str = "The image"
) -> str | None:
    """Read a text of an image without its pixels.

    Args:
        given: A path, or what the file holds.
        key: The key of a PNG text chunk. In JPEG and WebP files it is not looked at: they have the EXIF user comment.
        longest: Bytes that the text may have.
        label: What messages call what is given as bytes.

    Returns:
        The text, or None where the image has none.

    Raises:
        UnknownFormatError: The file is of another format.
        CorruptFileError: It is damaged, or the text is too long.
        HypernetworkError: It cannot be opened.
    """
    label, data = _data_of(given, label)
    kind = _format_of(data[:16])
    try:
        if kind == "PNG":
            return _png_text(data, key.encode("latin-1"), longest)
        if kind in ("JPEG", "WEBP"):
            return _user_comment(_jpeg_exif(data) if kind == "JPEG" else _cut_webp(data).exif, longest)
    except CorruptFileError as error:
        raise CorruptFileError(f"{label}: {error}") from error
    except (struct.error, IndexError) as error:
        raise CorruptFileError(f"{label}: the image is cut off. Copy or download it again.") from error
    raise UnknownFormatError(f"{label}: found {_found(kind)}. Use an image of these kinds: PNG, JPEG, WEBP.")


def is_image(head: bytes) -> bool:
    """True for the first bytes of an image of a format that `read_text` reads."""
    return _format_of(head[:16]) in ("PNG", "JPEG", "WEBP")


# -- what all formats share


@dataclass(frozen=True)
class _Cut:
    """What Pillow is given of a file.

    Attributes:
        data: A file of the same format with its first image alone.
        size: Width and height as declared, not yet upright.
        frames: How many images the whole file holds.
        exif: Its EXIF data, a TIFF file without an image.
        extra: Bytes that a decoder takes, or works through, besides the pixels.
        orientation: EXIF's number, where the format keeps it elsewhere.
    """

    data: bytes
    size: tuple[int, int]
    frames: int = 1
    exif: bytes = b""
    extra: int = 0
    orientation: int | None = None


def _data_of(given: str | os.PathLike[str] | bytes, label: str) -> tuple[str, bytes]:
    if isinstance(given, bytes):
        return label, given
    with open_source(given) as source:
        if source.size > LARGEST_FILE:
            raise CorruptFileError(
                f"{source.label}: an image of {source.size:,} bytes. Use one of at most {LARGEST_FILE:,} bytes."
            )
        return source.label, source.read(0, source.size)


def _format_of(head: bytes) -> str:
    if head.startswith(_PNG):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    return "BMP" if head.startswith(b"BM") else ""


def _found(kind: str) -> str:
    return f"an image of the kind {kind}" if kind else "a file of another kind"


def _decoded(cut: _Cut, kind: str, most_pixels: int, shortest: int | None) -> ReadImage:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise HypernetworkError("Reading images requires Pillow. Run: pip install 'hnloader[train]'") from error

    width, height = cut.size
    pixels = width * height
    if not 0 < pixels <= most_pixels:
        raise CorruptFileError(f"{width} x {height} pixels. Use an image of at most {most_pixels:,} pixels.")
    turn = cut.orientation or _orientation(cut.exif)
    try:
        image: Image.Image = Image.open(io.BytesIO(cut.data), formats=(kind,))
        if image.size != cut.size:
            raise CorruptFileError(f"it declares {width} x {height} pixels and holds others. Download it again.")
        mode = "RGBA" if has_alpha(image) else "RGB"
        each = _BYTES.get(image.mode, 4)
        if mode != image.mode or mode == "RGBA" or turn in _TURNS:  # a second copy, also to resize transparency
            each += 1 if kind == "WEBP" else 4
        if kind == "JPEG":
            _draft(image, cut, each, shortest)
        elif pixels * each + cut.extra > (4 * most_pixels if each == 4 else min(4 * most_pixels, _MOST_BYTES)):
            raise CorruptFileError(
                f"{width} x {height} pixels in a form that takes much memory. Make the image smaller."
            )
        image.load()
        image = image if image.mode == mode else image.convert(mode)
    except CorruptFileError:
        raise
    except Exception as error:  # Pillow's decoders raise what they like
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CorruptFileError(f"the image is damaged ({reason}). Copy or download it again.") from error
    image.info = {}
    size = (height, width) if turn in (5, 6, 7, 8) else (width, height)
    if turn in _TURNS:
        image = image.transpose(getattr(Image.Transpose, _TURNS[turn]))
    return ReadImage(image, size, cut.frames)


def _draft(image: Image, cut: _Cut, each: int, shortest: int | None) -> None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size where it is too large otherwise, or need not be larger."""
    width, height = cut.size
    scale = 1
    while scale < 8 and (
        (width // scale) * (height // scale) * each + cut.extra > _MOST_JPEG_BYTES
        or (shortest is not None and min(width, height) // (2 * scale) >= shortest)
    ):
        scale *= 2
    if scale > 1:
        image.draft(None, (max(1, width // scale), max(1, height // scale)))


def has_alpha(image: Image) -> bool:
    """True for an image with a transparency channel or color."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


# Bytes that Pillow takes for a pixel, where they are not 4.
_BYTES: Mapping[str, int] = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}
# EXIF's orientations as Pillow's methods.
_TURNS: Mapping[int, str] = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip


# -- PNG

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {2: 3, 4: 2, 6: 4}


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's kind, and where its data begin and end."""
    at = 8
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, min(at + 8 + size, len(data))
        if kind == b"IEND":
            return
        at += size + 12
    raise CorruptFileError(f"more than {_MOST_CHUNKS:,} chunks. Save the image again with another program.")


def _cut_png(data: bytes) -> _Cut:
    kept: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    exif, frames = b"", 1
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            pixels.append(memoryview(data)[start:end])
        elif kind in (b"IHDR", b"PLTE", b"tRNS"):
            if kind not in kept:
                kept[kind] = data[start:end]
                if data[end : end + 4] != struct.pack(">I", zlib.crc32(data[start - 4 : end])):
                    raise CorruptFileError(f"the checksum of {kind.decode()} differs. Copy or download it again.")
        elif kind == b"eXIf":
            exif = data[start:end]
        elif kind == b"acTL":
            frames = max(1, struct.unpack_from(">I", data, start)[0])
    width, height, bits, color = struct.unpack_from(">IIBB", kept.get(b"IHDR", b""))
    wide = width * height * (_PNG_SAMPLES.get(color, 1) * bits // 8 - 4)  # 16 bits a sample take twice the time
    parts: list[bytes | memoryview] = [_PNG]
    for kind, content in kept.items():
        parts += _png_chunk(kind, [memoryview(content)])
    parts += _png_chunk(b"IDAT", pixels)
    parts += _png_chunk(b"IEND", [])
    return _Cut(b"".join(parts), (width, height), frames, exif, max(0, wide))


def _png_chunk(kind: bytes, pieces: list[memoryview]) -> list[bytes | memoryview]:
    check = zlib.crc32(kind)
    for piece in pieces:
        check = zlib.crc32(piece, check)
    return [struct.pack(">I4s", sum(map(len, pieces)), kind), *pieces, struct.pack(">I", check)]


def _png_text(data: bytes, key: bytes, longest: int) -> str | None:
    """The last text of this key, as Pillow takes it."""
    found: tuple[bytes, int, int] | None = None
    for kind, start, end in _png_chunks(data):
        if kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(key + b"\0", start):
            found = kind, start + len(key) + 1, end
    if found is None:
        return None
    kind, start, end = found
    if kind == b"tEXt":
        return _short(data[start:end], longest).decode("latin-1")
    if kind == b"zTXt":
        return _inflated(data[start + 1 : end], longest).decode("latin-1")
    packed = data[start : start + 1] != b"\0"
    parts = data[start + 2 : end].split(b"\0", 2)
    text = parts[2] if len(parts) == 3 else b""
    return (_inflated(text, longest) if packed else _short(text, longest)).decode("utf-8", errors="replace")


def _short(text: bytes, longest: int) -> bytes:
    if len(text) > longest:
        raise CorruptFileError(f"a text of {len(text):,} bytes. Use an image with a text of at most {longest:,}.")
    return text


def _inflated(packed: bytes, longest: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, longest + 1)
    except zlib.error as error:
        raise CorruptFileError(f"a compressed text is damaged ({error}). Copy or download it again.") from error
    if len(text) > longest:
        raise CorruptFileError(f"a text that unpacks to more than {longest:,} bytes. Use another image.")
    return text


# -- JPEG

# The end of a pass's data: 0xff before anything but a stuffed zero, a restart and another 0xff.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_JPEG_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_TABLES = (0xC4, 0xDB, 0xDD)
_COLORS = ((0xE0, b"JFIF"), (0xEE, b"Adob"))


def _cut_jpeg(data: bytes) -> _Cut:
    """The frame, the tables and the passes; of the application segments only those that say what the colors mean."""
    parts: list[bytes | memoryview] = [data[:2]]
    view, at = memoryview(data), 2
    size: tuple[int, int] | None = None
    areas: list[tuple[int, int]] = []  # each component's number and samples
    progressive = False
    exif = b""
    passes = passed = 0
    for _ in range(_MOST_CHUNKS):
        match = _JPEG_MARKER.search(data, at)
        if match is None:
            break
        marker, start = data[match.start() + 1], match.end()
        if marker == 0xD9:
            parts.append(data[match.start() : start])
            break
        if marker in (0x01, 0xD8):
            at = start
            continue
        (length,) = struct.unpack_from(">H", data, start)
        at = end = start + max(length, 2)
        segment = view[match.start() : end]
        content = data[start + 2 : min(end, start + 16)]
        if marker in _OTHER_JPEG_FRAMES:
            raise CorruptFileError("a rare kind of JPEG. Save it as an ordinary JPEG.")
        if marker in _JPEG_FRAMES:
            if size is not None:
                raise CorruptFileError("two images in one JPEG. Save it again with another program.")
            size, areas = _jpeg_frame(data[start + 2 : end])
            progressive = marker == 0xC2
            parts.append(segment)
        elif marker in _TABLES or (marker, content[:4]) in _COLORS:
            parts.append(segment)
        elif marker == 0xE1 and content.startswith(b"Exif\0\0") and not exif:
            exif = data[start + 8 : end]
        elif marker == 0xDA:
            passes += 1
            looked_at = {data[start + 3 + 2 * index] for index in range(min(data[start + 2], 4))}
            passed += sum(area for number, area in areas if number in looked_at)
            if passed > _MOST_PASSED_SAMPLES:
                raise CorruptFileError("a JPEG of too many passes for its size. Save it as an ordinary JPEG.")
            stop = _JPEG_MARKER.search(data, end)
            at = stop.start() if stop is not None else len(data)
            parts.append(view[match.start() : at])
    else:
        raise CorruptFileError(f"more than {_MOST_CHUNKS:,} segments. Save the image again with another program.")
    if size is None:
        raise CorruptFileError("a JPEG without an image. Copy or download it again.")
    buffered = sum(area for _, area in areas) if progressive or passes > 1 else 0
    if buffered > _MOST_BUFFERED_SAMPLES:
        raise CorruptFileError(f"a progressive JPEG of {size[0]} x {size[1]} pixels. Save it as a baseline JPEG.")
    return _Cut(b"".join(parts), size, 1, exif, 2 * buffered)


def _jpeg_exif(data: bytes) -> bytes:
    """The EXIF data before the first pass, whatever the image is."""
    at = 2
    for _ in range(_MOST_CHUNKS):
        match = _JPEG_MARKER.search(data, at)
        if match is None or data[match.start() + 1] in (0xD9, 0xDA):
            return b""
        at = match.end()
        if data[at - 1] in (0x01, 0xD8):
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if data[at - 1] == 0xE1 and data.startswith(b"Exif\0\0", at + 2):
            return data[at + 8 : at + length]
        at += max(length, 2)
    raise CorruptFileError(f"more than {_MOST_CHUNKS:,} segments. Save the image again with another program.")


def _jpeg_frame(content: bytes) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Width and height, and each component's number and how many samples it has."""
    height, width, count = struct.unpack_from(">HHB", content, 1)
    parts = [(content[6 + 3 * index], *divmod(content[7 + 3 * index], 16)) for index in range(count)]
    widest, highest = max((part[1] for part in parts), default=1) or 1, max((part[2] for part in parts), default=1) or 1
    areas = [(number, -(-width * across // widest) * -(-height * down // highest)) for number, across, down in parts]
    return (width, height), areas


# -- WebP


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, min(at + 8 + size, len(data))
        at += 8 + size + size % 2
    raise CorruptFileError(f"more than {_MOST_CHUNKS:,} chunks. Save the image again with another program.")


def _cut_webp(data: bytes) -> _Cut:
    kept: dict[bytes, bytes] = {}
    exif, frames = b"", 0
    for kind, start, end in _riff_chunks(data):
        frames += kind == b"ANMF"
        if kind == b"EXIF":
            exif = data[start:end].removeprefix(b"Exif\0\0")
        elif kind in (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"):
            kept.setdefault(kind, data[start:end])
    if extended := kept.get(b"VP8X"):
        width = 1 + int.from_bytes(extended[4:7], "little")
        height = 1 + int.from_bytes(extended[7:10], "little")
        kept[b"VP8X"] = bytes([extended[0] & 0x12]) + extended[1:]  # transparency and animation; no metadata
    elif lossless := kept.get(b"VP8L"):
        (packed,) = struct.unpack_from("<I", lossless, 1)
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    else:
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", kept.get(b"VP8 ", b""), 6))
    body = b"".join(
        struct.pack("<4sI", kind, len(content)) + content + b"\0" * (len(content) % 2) for kind, content in kept.items()
    )
    return _Cut(struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body, (width, height), frames or 1, exif)


# -- GIF

_GIF_BLOCK = re.compile(rb"[!,;]")


def _cut_gif(data: bytes) -> _Cut:
    """The palette, the transparent color and the first image; the others are counted."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    parts, frames = [data[:at]], 0
    control = b""
    for _ in range(_MOST_CHUNKS):
        known = _GIF_BLOCK.search(data, at)  # decoders skip what they do not know
        if known is None or known[0] == b";":
            break
        start = at = known.start()
        if known[0] == b"!":
            at = _after_blocks(data, at + 2)
            if data[start + 1] == 0xF9:
                control = data[start:at]
        else:
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at + 1)
            at = _after_blocks(data, at + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
            if frames == 0:
                parts += [control, data[start:at]]
                width, height = max(width, left + wide), max(height, top + high)
            frames += 1
    else:
        raise CorruptFileError(f"more than {_MOST_CHUNKS:,} blocks. Save the image again with another program.")
    if frames == 0:
        raise CorruptFileError("a GIF without an image. Copy or download it again.")
    return _Cut(b"".join([*parts, b";"]), (width, height), frames)


def _after_blocks(data: bytes, at: int) -> int:
    """Where the blocks that begin at `at` end; a block begins with its length, and one of no length is the last."""
    end = len(data)
    while at < end and (size := data[at]):
        at += size + 1
    return min(at + 1, end)


# -- BMP


def _cut_bmp(data: bytes) -> _Cut:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
        if compression in (1, 2):  # Pillow unpacks them in Python, one by one
            raise CorruptFileError("a run-length encoded BMP. Save it as PNG.")
    return _Cut(data, (width, abs(height)))


# -- TIFF, and EXIF, which is the same without an image

_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MOST_TAGS = 4_096
_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION, _EXIF, _COMMENT = 256, 257, 259, 274, 0x8769, 0x9286
_BITS, _SAMPLES, _ROWS, _STRIP_SIZES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_SIZES = 258, 277, 278, 279, 322, 323, 325
# The tags that say where the pixels are and what they mean.
_PIXEL_TAGS = (
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320),
    *(322, 323, 324, 325, 338, 339, 530, 532),
)
# Bytes, two and four bytes, fractions.
_PIXEL_KINDS = (1, 3, 4, 5)
# None, LZW, deflate (two numbers), PackBits.
_COMPRESSIONS = (1, 5, 8, 32946, 32773)


@dataclass(frozen=True)
class _Tag:
    entry: bytes
    kind: int
    count: int
    size: int
    at: int


class _Tags:
    """The tags of a directory; values are read when they are asked for, as files point at the same megabytes often."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self._data = data
        self.order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        if not self.order:
            raise CorruptFileError("its metadata are damaged. Copy or download it again.")
        at = self._unpacked("I", 4) if at is None else at
        count = min(self._unpacked("H", at), _MOST_TAGS)
        self.found: dict[int, _Tag] = {}
        for place in range(at + 2, at + 2 + 12 * count, 12):
            number, kind, values = struct.unpack_from(f"{self.order}HHI", data, place)
            size = _TIFF_SIZES.get(kind, 0) * values
            where = place + 8 if size <= 4 else self._unpacked("I", place + 8)
            self.found[number] = _Tag(data[place : place + 12], kind, values, size, where)
        self.more = any(data[at + 2 + 12 * count : at + 6 + 12 * count])

    def _unpacked(self, form: str, at: int) -> int:
        value: int = struct.unpack_from(self.order + form, self._data, at)[0]
        return value

    def numbers(self, number: int, most: int = 1) -> list[int]:
        """The first whole numbers of a tag; none where it is missing or holds something else."""
        tag = self.found.get(number)
        if tag is None or tag.kind not in (1, 3, 4, 13):
            return []
        form = {1: "B", 3: "H"}.get(tag.kind, "I")
        return list(struct.unpack_from(f"{self.order}{min(tag.count, most)}{form}", self._data, tag.at))

    def number(self, number: int, default: int = 0) -> int:
        """The first of them."""
        return next(iter(self.numbers(number)), default)


def _cut_tiff(data: bytes) -> _Cut:
    """The file with a directory at its end that has the tags of the pixels alone."""
    tags = _Tags(data)
    kept = [tags.found[number] for number in _PIXEL_TAGS if number in tags.found]
    strips = [*tags.numbers(_STRIP_SIZES, _MOST_STRIPS + 1), *tags.numbers(_TILE_SIZES, _MOST_STRIPS + 1)]
    tile = tags.number(_TILE_WIDTH) * tags.number(_TILE_HEIGHT)
    if len(strips) > _MOST_STRIPS or max(sum(tag.size for tag in kept), sum(strips)) > len(data):
        raise CorruptFileError("its parts overlap or are too many. Save the image again with another program.")
    compression = tags.number(_COMPRESSION, 1)
    usual = compression in _COMPRESSIONS and (compression == 1 or strips) and tile <= _LARGEST_TILE
    if not usual or any(tag.kind not in _PIXEL_KINDS for tag in kept):
        raise CorruptFileError("a rare kind of TIFF. Save it as PNG.")
    bits = tags.number(_BITS, 1) * tags.number(_SAMPLES, 1)
    rows = min(tags.number(_ROWS, 1 << 32), tags.number(_HEIGHT))
    strip = 0 if compression == 1 else tags.number(_WIDTH) * rows * bits // 8
    directory = struct.pack(f"{tags.order}H", len(kept)) + b"".join(tag.entry for tag in kept) + bytes(4)
    pad = bytes(len(data) % 2)
    header = data[:4] + struct.pack(f"{tags.order}I", len(data) + len(pad))
    return _Cut(
        b"".join([header, memoryview(data)[8:], pad, directory]),
        (tags.number(_WIDTH), tags.number(_HEIGHT)),
        2 if tags.more else 1,
        extra=strip,
        orientation=tags.number(_ORIENTATION, 1),
    )


def _orientation(exif: bytes) -> int:
    try:
        return _Tags(exif).number(_ORIENTATION, 1)
    except (CorruptFileError, struct.error):
        return 1


def _user_comment(exif: bytes, longest: int) -> str | None:
    """EXIF's user comment: 8 bytes that name the encoding, and the text."""
    try:
        tags = _Tags(exif)
        found = _Tags(exif, tags.number(_EXIF)).found.get(_COMMENT)
    except (CorruptFileError, struct.error):
        return None
    if found is None:
        return None
    content = _short(exif[found.at : found.at + found.size], longest)
    encoding, text = content[:8], content[8:]
    if not encoding.startswith(b"UNICODE"):
        return text.decode("utf-8", errors="replace").strip("\0 ") or None
    # The order of bytes is not stated; programs write either. Most characters of a prompt have a zero in the first.
    little = text[1::2].count(0) > text[::2].count(0)
    return text.decode("utf-16-le" if little else "utf-16-be", errors="replace").strip("\0\ufeff ") or None


_CUTTERS: Mapping[str, Callable[[bytes], _Cut]] = {
    "PNG": _cut_png,
    "JPEG": _cut_jpeg,
    "WEBP": _cut_webp,
    "GIF": _cut_gif,
    "BMP": _cut_bmp,
    "TIFF": _cut_tiff,
}
