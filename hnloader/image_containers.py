"""Image files cut down to what Pillow needs: the first image, without metadata; and the text that they hold.

Each format is read from its structure alone. Nothing is decoded here.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from hnloader.errors import CorruptFileError

_MOST_CHUNKS = 100_000
_TOO_MANY = f"More than {_MOST_CHUNKS:,} parts. Save the image again with another program."
# Values that the decoder of a JPEG with several passes keeps, and values that all its passes read.
_MOST_BUFFERED_SAMPLES = 80_000_000
_MOST_PASSED_SAMPLES = 1_200_000_000
_MOST_STRIPS = 65_536
_LARGEST_TILE = 1 << 22


@dataclass(frozen=True)
class CutImage:
    """The part of a file that Pillow decodes.

    Attributes:
        data: A file of the same format with its first image only.
        size: Declared width and height, not yet upright.
        frames: Number of images in the whole file.
        exif: EXIF data, a TIFF file without an image.
        extra: Bytes that a decoder takes or reads besides the pixels.
        orientation: EXIF's number, in formats that keep it elsewhere.
    """

    data: bytes
    size: tuple[int, int]
    frames: int = 1
    exif: bytes = b""
    extra: int = 0
    orientation: int | None = None

    @property
    def turn(self) -> int:
        """EXIF's number of the orientation, 1 for upright."""
        return self.orientation or _orientation(self.exif)


def format_of(head: bytes) -> str:
    """Return Pillow's name of a file's format from its first bytes, empty if unknown."""
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


def cut(data: bytes, kind: str) -> CutImage:
    """Cut a file of a format down to its first image, or raise CorruptFileError, struct.error or IndexError."""
    return _CUTTERS[kind](data)


def text_in(data: bytes, kind: str, key: bytes, longest: int) -> str | None:
    """Return a text of a PNG, JPEG or WebP file, None without it; raises what `cut` raises."""
    if kind == "PNG":
        return _png_text(data, key, longest)
    return _user_comment(_jpeg_exif(data) if kind == "JPEG" else _cut_webp(data).exif, longest)


# -- PNG

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {2: 3, 4: 2, 6: 4}


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's kind, and the start and end of its data."""
    at = 8
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, min(at + 8 + size, len(data))
        if kind == b"IEND":
            return
        at += size + 12
    raise CorruptFileError(_TOO_MANY)


def _cut_png(data: bytes) -> CutImage:
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
                    raise CorruptFileError(f"Checksum of {kind.decode()} differs. Copy or download it again.")
        elif kind == b"eXIf":
            exif = data[start:end]
        elif kind == b"acTL":
            frames = max(1, struct.unpack_from(">I", data, start)[0])
    width, height, bits, color = struct.unpack_from(">IIBB", kept.get(b"IHDR", b""))
    wide = width * height * (_PNG_SAMPLES.get(color, 1) * bits // 8 - 4)  # 16 bits per value take twice the time
    parts: list[bytes | memoryview] = [_PNG]
    for kind, content in kept.items():
        parts += _png_chunk(kind, [memoryview(content)])
    parts += _png_chunk(b"IDAT", pixels)
    parts += _png_chunk(b"IEND", [])
    return CutImage(b"".join(parts), (width, height), frames, exif, max(0, wide))


def png_rows(head: bytes, most: int) -> bytes | None:
    """Return a PNG of the first rows, at most `most`; `head` is the beginning of a PNG.

    Returns None for an interlaced one, and if `head` ends within the first row. Raises what `cut` raises.
    """
    kept: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    for kind, start, end in _png_chunks(head):
        if kind == b"IDAT":
            pixels.append(head[start:end])
        elif kind in (b"IHDR", b"PLTE", b"tRNS"):
            kept.setdefault(kind, head[start:end])
    width, height, bits, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", kept.get(b"IHDR", b""))
    row = 1 - (-width * bits * _PNG_SAMPLES.get(color, 1) // 8)
    try:
        content = zlib.decompressobj().decompress(b"".join(pixels), min(height, most) * row)
    except zlib.error as error:
        raise CorruptFileError(f"Damaged pixels ({error}). Copy or download it again.") from error
    count = len(content) // row
    if interlaced or count == 0:
        return None
    kept[b"IHDR"] = struct.pack(">II", width, count) + kept[b"IHDR"][8:]
    kept[b"IDAT"] = zlib.compress(content[: count * row], 0)
    parts: list[bytes | memoryview] = [_PNG]
    for kind, data in (*kept.items(), (b"IEND", b"")):
        parts += _png_chunk(kind, [memoryview(data)])
    return b"".join(parts)


def is_lossy_webp(head: bytes) -> bool:
    """Return True if the beginning of a WebP file shows a lossy image."""
    return any(kind == b"VP8 " for kind, _, _ in _riff_chunks(head))


def _png_chunk(kind: bytes, pieces: list[memoryview]) -> list[bytes | memoryview]:
    check = zlib.crc32(kind)
    for piece in pieces:
        check = zlib.crc32(piece, check)
    return [struct.pack(">I4s", sum(map(len, pieces)), kind), *pieces, struct.pack(">I", check)]


def _png_text(data: bytes, key: bytes, longest: int) -> str | None:
    """Return the last text with this key, as Pillow does."""
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
        raise CorruptFileError(f"Text of {len(text):,} bytes. Use an image with a text of at most {longest:,}.")
    return text


def _inflated(packed: bytes, longest: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, longest + 1)
    except zlib.error as error:
        raise CorruptFileError(f"Damaged compressed text ({error}). Copy or download it again.") from error
    if len(text) > longest:
        raise CorruptFileError(f"Text that unpacks to more than {longest:,} bytes. Use another image.")
    return text


# -- JPEG

# A pass ends at 0xff before anything except a stuffed zero, a restart and another 0xff.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_JPEG_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_JPEG_END, _JPEG_PASS = 0xD9, 0xDA
_TABLES = (0xC4, 0xDB, 0xDD)
_COLORS = ((0xE0, b"JFIF"), (0xEE, b"Adob"))


def _jpeg_segments(data: bytes, *, passes: bool = True) -> Iterator[tuple[int, int, int]]:
    """Yield each segment's marker, start and end; a pass includes its data. Without `passes`, stop at the first one."""
    at = 2
    for _ in range(_MOST_CHUNKS):
        match = _JPEG_MARKER.search(data, at)
        if match is None:
            return
        begin, at = match.span()
        marker = data[begin + 1]
        if marker in (0x01, 0xD8):  # they have no data
            continue
        if marker == _JPEG_PASS and not passes:
            return
        if marker != _JPEG_END:
            (length,) = struct.unpack_from(">H", data, at)
            at += max(length, 2)
        if marker == _JPEG_PASS:
            stop = _JPEG_MARKER.search(data, at)
            at = stop.start() if stop is not None else len(data)
        yield marker, begin, at
        if marker == _JPEG_END:
            return
    raise CorruptFileError(_TOO_MANY)


def _cut_jpeg(data: bytes) -> CutImage:
    """Keep the frame, the tables, the passes, and the application segments about the meaning of the colors."""
    view = memoryview(data)
    parts = [view[:2]]
    size: tuple[int, int] | None = None
    areas: list[tuple[int, int]] = []  # number and count of values of each component
    progressive, exif = False, b""
    passes = passed = 0
    for marker, begin, end in _jpeg_segments(data):
        segment, content = view[begin:end], data[begin + 4 : min(end, begin + 18)]
        if marker in _OTHER_JPEG_FRAMES:
            raise CorruptFileError("JPEG of a rare kind. Save it as an ordinary JPEG.")
        if marker in _JPEG_FRAMES:
            if size is not None:
                raise CorruptFileError("JPEG with two images. Save it again with another program.")
            size, areas = _jpeg_frame(data[begin + 4 : end])
            progressive = marker == 0xC2
        elif marker == 0xE1 and content.startswith(b"Exif\0\0") and not exif:
            exif = data[begin + 10 : end]
        elif marker == _JPEG_PASS:
            passes += 1
            numbers = {data[begin + 5 + 2 * index] for index in range(min(data[begin + 4], 4))}
            passed += sum(area for number, area in areas if number in numbers)
            if passed > _MOST_PASSED_SAMPLES:
                raise CorruptFileError("JPEG of too many passes for its size. Save it as an ordinary JPEG.")
        if marker in (*_JPEG_FRAMES, *_TABLES, _JPEG_PASS, _JPEG_END) or (marker, content[:4]) in _COLORS:
            parts.append(segment)
    if size is None:
        raise CorruptFileError("JPEG without an image. Copy or download it again.")
    buffered = sum(area for _, area in areas) if progressive or passes > 1 else 0
    if buffered > _MOST_BUFFERED_SAMPLES:
        raise CorruptFileError(f"Progressive JPEG of {size[0]} x {size[1]} pixels. Save it as a baseline JPEG.")
    return CutImage(b"".join(parts), size, 1, exif, 2 * buffered)


def _jpeg_exif(data: bytes) -> bytes:
    """Return the EXIF data before the first pass."""
    for marker, begin, end in _jpeg_segments(data, passes=False):
        if marker == 0xE1 and data.startswith(b"Exif\0\0", begin + 4):
            return data[begin + 10 : end]
    return b""


def _jpeg_frame(content: bytes) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return width and height, and the number and the count of values of each component."""
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
    raise CorruptFileError(_TOO_MANY)


def _cut_webp(data: bytes) -> CutImage:
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
    return CutImage(struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body, (width, height), frames or 1, exif)


# -- GIF

_GIF_BLOCK = re.compile(rb"[!,;]")


def _cut_gif(data: bytes) -> CutImage:
    """Keep the palette, the transparent color and the first image; count the others."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    parts, frames = [data[:at]], 0
    control = b""
    for _ in range(_MOST_CHUNKS):
        known = _GIF_BLOCK.search(data, at)  # decoders skip other bytes
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
        raise CorruptFileError(_TOO_MANY)
    if frames == 0:
        raise CorruptFileError("GIF without an image. Copy or download it again.")
    return CutImage(b"".join([*parts, b";"]), (width, height), frames)


def _after_blocks(data: bytes, at: int) -> int:
    """Return the end of the blocks at `at`; each begins with its length, and the last has the length 0."""
    end = len(data)
    while at < end and (size := data[at]):
        at += size + 1
    return min(at + 1, end)


# -- BMP


def _cut_bmp(data: bytes) -> CutImage:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
        if compression in (1, 2):  # Pillow unpacks it slowly, in Python
            raise CorruptFileError("BMP with run-length encoding. Save it as PNG.")
    return CutImage(data, (width, abs(height)))


# -- TIFF, and EXIF, which is a TIFF without an image

_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MOST_TAGS = 4_096
_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION, _EXIF, _COMMENT = 256, 257, 259, 274, 0x8769, 0x9286
_BITS, _SAMPLES, _ROWS, _STRIP_SIZES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_SIZES = 258, 277, 278, 279, 322, 323, 325
# The tags about the place and the meaning of the pixels.
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
    """The tags of a directory. Values are read on demand, because files can point to the same megabytes often."""

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self._data = data
        self.order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
        if not self.order:
            raise CorruptFileError("Metadata is damaged. Copy or download it again.")
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
        """Return the first integers of a tag, none if it is missing or holds other values."""
        tag = self.found.get(number)
        if tag is None or tag.kind not in (1, 3, 4, 13):
            return []
        form = {1: "B", 3: "H"}.get(tag.kind, "I")
        return list(struct.unpack_from(f"{self.order}{min(tag.count, most)}{form}", self._data, tag.at))

    def number(self, number: int, default: int = 0) -> int:
        """Return the first integer of a tag."""
        return next(iter(self.numbers(number)), default)


def _cut_tiff(data: bytes) -> CutImage:
    """Append a directory with the tags of the pixels only, and point to it."""
    tags = _Tags(data)
    kept = [tags.found[number] for number in _PIXEL_TAGS if number in tags.found]
    strips = [*tags.numbers(_STRIP_SIZES, _MOST_STRIPS + 1), *tags.numbers(_TILE_SIZES, _MOST_STRIPS + 1)]
    tile = tags.number(_TILE_WIDTH) * tags.number(_TILE_HEIGHT)
    if len(strips) > _MOST_STRIPS or max(sum(tag.size for tag in kept), sum(strips)) > len(data):
        raise CorruptFileError("TIFF whose parts overlap or are too many. Save the image again with another program.")
    compression = tags.number(_COMPRESSION, 1)
    usual = compression in _COMPRESSIONS and (compression == 1 or strips) and tile <= _LARGEST_TILE
    if not usual or any(tag.kind not in _PIXEL_KINDS for tag in kept):
        raise CorruptFileError("TIFF of a rare kind. Save it as PNG.")
    bits = tags.number(_BITS, 1) * tags.number(_SAMPLES, 1)
    rows = min(tags.number(_ROWS, 1 << 32), tags.number(_HEIGHT))
    strip = 0 if compression == 1 else tags.number(_WIDTH) * rows * bits // 8
    directory = struct.pack(f"{tags.order}H", len(kept)) + b"".join(tag.entry for tag in kept) + bytes(4)
    pad = bytes(len(data) % 2)
    header = data[:4] + struct.pack(f"{tags.order}I", len(data) + len(pad))
    return CutImage(
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
    """Return EXIF's user comment: 8 bytes that name the encoding, and the text."""
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
    # Programs write either byte order. In most characters of a prompt the high byte is zero.
    little = text[1::2].count(0) > text[::2].count(0)
    return text.decode("utf-16-le" if little else "utf-16-be", errors="replace").strip("\0\ufeff ") or None


_CUTTERS: Mapping[str, Callable[[bytes], CutImage]] = {
    "PNG": _cut_png,
    "JPEG": _cut_jpeg,
    "WEBP": _cut_webp,
    "GIF": _cut_gif,
    "BMP": _cut_bmp,
    "TIFF": _cut_tiff,
}
