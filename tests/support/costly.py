"""Makes files of up to 16 MiB that would take all time or memory of a reader that counts the wrong things.

Each counts on something that grows faster than the file: what a mention of a text unfolds to, members that share their
data, headers that hold no data, pickles of three bytes.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Iterator

MOST = 16 << 20
BIG_TEXT = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\xff"
MANY_MENTIONS = b"0(" + b"h\xff" * 3000 + b"l"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def pickles() -> dict[str, bytes]:
    """Opcodes that leave one value on the stack."""
    laughs = b"]q\x00" + b"".join(
        b"0(" + (b"h" + bytes([level - 1])) * 10 + b"lq" + bytes([level]) for level in range(1, 12)
    )
    numbers = b"".join(b"J" + struct.pack("<i", number) + b"N" for number in range(100_000))
    return {
        "a billion lists as a storage's key": b"("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + laughs
        + b"0h\x0b"
        + text("cpu")
        + b"K\x01tQ",
        "one text 3,000 times": BIG_TEXT + MANY_MENTIONS,
        "one byte string 3,000 times": b"B" + BIG_TEXT[1:] + MANY_MENTIONS,
        "one text as every key": BIG_TEXT + b"0(" + b"(h\xffNd" * 3000 + b"l",
        "3,000 globals of one long module": BIG_TEXT
        + b"0"
        + b"".join(b"h\xff\x8c\x05" + b"%05d" % number + b"\x930" for number in range(3000))
        + b"N",
        "20,000 objects of one long name": b"cos\n" + b"a" * 1_000_000 + b"\nq\xff0" + b"h\xff)\x810" * 20_000 + b"N",
        "500 updates with 100,000 parameters": b"}("
        + numbers
        + b"uq\xfe0}"
        + text("_parameters")
        + b"h\xfesq\xfd0ctorch.nn.modules.container\nParameterDict\n)\x81q\xfc0"
        + b"h\xfch\xfdb0" * 500
        + b"N",
        "one text encoded 5,000 times": b"c_codecs\nencode\nq\xfe0"
        + BIG_TEXT
        + b"0("
        + (b"h\xfeh\xff" + text("latin1") + b"\x86R") * 5000
        + b"l",
        "a dict copied into OrderedDicts": b"}("
        + numbers
        + b"uq\xfe0ccollections\nOrderedDict\nq\xfd0("
        + b"h\xfdh\xfe\x85R" * 5000
        + b"l",
        "150,000 empty sets": b"(" + b"\x8f" * 150_000 + b"l",
        "28,000 empty sets": b"(" + b"\x8f" * 28_000 + b"l",
        "28,000 empty OrderedDicts": b"ccollections\nOrderedDict\nq\xff0(" + b"h\xff)R" * 28_000 + b"l",
        "4 MiB of control characters": b"X" + struct.pack("<I", 4_000_000) + b"\x01" * 4_000_000,
        "4 MiB of surrogates": b"X" + struct.pack("<I", 3_999_999) + b"\xed\xa0\x80" * 1_333_333,
        "4 MiB of bytes": b"B" + struct.pack("<I", 4_000_000) + b"\xff" * 4_000_000,
        "100,000 empty OrderedDicts": b"ccollections\nOrderedDict\nq\xff0(" + b"h\xff)R" * 100_000 + b"l",
        "60,000 arrays of numpy": b"cnumpy.core.multiarray\n_reconstruct\nq\xff0cnumpy\nndarray\nq\xfe0("
        + b"h\xffh\xfeK\x00\x85C\x01b\x87R" * 60_000
        + b"l",
        "text of 15 MiB": b"X" + struct.pack("<I", 15 << 20) + b"reluxyz " * (15 << 17),
        "a line of 15 MiB": b"V" + b"\\u0061" * ((15 << 20) // 6) + b"\n",
        "an integer of 15 MiB": b"I" + b"9" * (15 << 20) + b"\n",
        "a float of 15 MiB": b"F" + b"9" * (15 << 20) + b"\n",
        "a quoted text of 15 MiB": b"S'" + b"\\x61" * ((15 << 20) // 4) + b"'\n",
        "8,000,000 opcodes": b"N0" * 8_000_000 + b"N",
    }


def files() -> dict[str, bytes]:
    """Whole files that are not what torch.save writes."""
    row = b"\x80\x02N."
    return {
        "4,000,000 pickles in a row": row * (MOST // len(row)),
        "millions of local headers": b"PK\x03\x04" * ((MOST - 22) // 4) + _end(0, 0, 0),
        "local headers of deflated zeros": _deflated_headers(),
        "entries that share one deflated member": _shared_member(20_000),
        "empty extra fields": _extra_fields(),
        "a directory of long names": _long_names(),
        "end records all over": b"\x80\x02N." + b"PK\x05\x06" * ((1 << 20) // 4),
        "tar headers all over": b"".join(_tar_headers()),
        "tar headers behind an extended one": _tar_header(tarfile.XHDTYPE) + b"".join(_tar_headers()),
        "text of one line": b"V" + b"a" * (MOST - 1),
        "names in lines": b"(" + b"cos\nsystem\n" * ((MOST - 1) // 11),
        "zeros": bytes(MOST),
    }


def _end(count: int, size: int, start: int) -> bytes:
    return b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count, count, size, start, 0)


def _local(name: bytes, data: bytes, *, method: int = 0, size: int | None = None, crc: int = 0) -> bytes:
    unpacked = len(data) if size is None else size
    return (
        b"PK\x03\x04"
        + struct.pack("<5H3I2H", 20, 0, method, 0, 33, crc, len(data), unpacked, len(name), 0)
        + name
        + data
    )


def _entry(
    name: bytes, packed: int, unpacked: int, *, method: int = 0, crc: int = 0, extra: bytes = b"", at: int = 0
) -> bytes:
    fields = (20, 20, 0, method, 0, 33, crc, packed, unpacked, len(name), len(extra), 0, 0, 0, 0, at)
    return b"PK\x01\x02" + struct.pack("<6H3I5H2I", *fields) + name + extra


def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def _deflated_headers() -> bytes:
    one = _local(b"x", b"", method=8)
    return one * 15_000 + _local(b"data.pkl", _deflated(b"N0" * (4 << 20)), method=8) + _end(0, 0, 0)


def _shared_member(count: int) -> bytes:
    content = b"N0" * (8 << 20)
    data, crc = _deflated(content), zlib.crc32(content)
    local = _local(b"a/data.pkl", data, method=8, size=len(content), crc=crc)
    directory = b"".join(
        _entry(b"a/%06d" % number, len(data), len(content), method=8, crc=crc) for number in range(count)
    )
    return local + directory + _end(count, len(directory), len(local))


def _extra_fields() -> bytes:
    extra = b"\x00\x80\x00\x00" * 16_370 + b"\x01\x80\x02\x00up"
    names = [b"a/data.pkl", *(b"a/x%d" % number for number in range(120))]
    locals_, directory, at = b"", b"", 0
    for name in names:
        one = _local(name, b"")
        directory += _entry(name, 0, 0, extra=extra, at=at)
        locals_ += one
        at += len(one)
    return locals_ + directory + _end(len(names), len(directory), len(locals_))


def _long_names() -> bytes:
    names = [b"a/data.pkl", *(b"a/" + b"../" * 1000 + b"%d" % number for number in range(2000))]
    locals_, directory = [], []
    at = 0
    for name in names:
        one = _local(name, b"")
        directory.append(_entry(name, 0, 0, at=at))
        locals_.append(one)
        at += len(one)
    listed = b"".join(directory)
    return b"".join(locals_) + listed + _end(len(names), len(listed), at)


def _tar_header(kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo("x")
    info.type = kind
    return info.tobuf(tarfile.USTAR_FORMAT)[:512]


def _tar_headers() -> Iterator[bytes]:
    one = _tar_header()
    for _ in range(MOST // len(one) - 1):
        yield one
