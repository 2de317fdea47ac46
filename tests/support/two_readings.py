"""Makes files that two programs read differently: a sound hypernetwork for one, a call for another.

Each was called safe once, while `torch.load(weights_only=False)` or `pickle.load` of the same bytes ran the call.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

import hnloader
from tests.support.builders import simple_tree
from tests.support.hostile import text


def files(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes; the call opens `canary` for writing."""
    call = b"c__builtin__\nopen\n" + text(str(canary)) + text("w") + b"\x86R"
    lines = b"c__builtin__\nopen\n(V" + str(canary).encode() + b"\nVw\ntR"
    good = _members(simple_tree())
    evil = [
        (name, b"\x80\x02" + call + b"0" + content[2:] if name.endswith("data.pkl") else content)
        for name, content in _members(simple_tree(seed=7))
    ]
    sound = _zipped(good)
    yield "two directories", _two_directories(sound, _zipped(evil))
    yield "two zip64 records", _two_zip64_records(sound, _zipped(evil))
    yield "a zip archive in a comment", _with_comment(sound, _zipped(evil))
    yield "a zip archive behind a legacy stream", _legacy() + _shifted(_zipped(evil), len(_legacy()))
    yield "a zip archive behind a zip archive", sound + _shifted(_zipped(evil), len(sound))
    yield "a zip archive behind a safetensors file", _safetensors() + _shifted(_zipped(evil), len(_safetensors()))
    yield "a zip archive behind text", b"#!/bin/sh\n" + _shifted(_zipped(evil), 10)
    yield "the pickle by another case", _zipped([*good[1:], ("archive/DATA.PKL", evil[0][1])])
    yield (
        "a second pickle by another case",
        _zipped([("archive/DATA.PKL", evil[0][1]), *evil[1:], *_in_folder(good, "archive/b")]),
    )
    yield "a second pickle in another folder", _zipped([*good, ("b/data.pkl", evil[0][1])])
    yield "a second pickle without a folder", _zipped([*good, ("data.pkl", evil[0][1])])
    yield "a legacy stream that is a tar archive", _tar_in_stream(lines + b".")
    yield "a safetensors file that is a pickle", _safetensors_pickle(lines)
    yield "a pickle in a storage of torch.package", _zipped([*good, ("archive/x/data/0", b"\x80\x02" + call + b".")])
    yield "a pickle in a member of any name", _zipped([*good, ("archive/version2", b"\x80\x02" + call + b".")])
    yield "a pickle as a storage", _zipped([*good, ("archive/data/99", b"\x80\x04" + call + b".")])
    yield "a pickle of protocol 0 as a storage", _zipped([*good, ("archive/data/99", lines + b"\xff")])
    yield "a call behind 16 MiB in a member", _zipped([*good, ("archive/x", b"V" + b"a" * (17 << 20) + b"\n0" + call)])
    yield "a frame that hides the module's first letter", b"\x80\x02" + _hiding_frame(call)


def _members(content: object) -> list[tuple[str, bytes]]:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def _zipped(members: list[tuple[str, bytes]]) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return result.getvalue()


def _in_folder(members: list[tuple[str, bytes]], folder: str) -> list[tuple[str, bytes]]:
    return [(f"{folder}/{name.partition('/')[2]}", content) for name, content in members]


def _legacy() -> bytes:
    buffer = io.BytesIO()
    torch.manual_seed(0)
    torch.save(simple_tree(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _safetensors() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.safetensors"
        hnloader.save(hnloader.load(io.BytesIO(_zipped(_members(simple_tree())))), path)
        return path.read_bytes()


def _parts(archive: bytes) -> tuple[bytes, bytes]:
    end = archive.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", archive, end + 12)
    return archive[:start], archive[start : start + size]


def _moved(directory: bytes, by: int) -> bytes:
    """A directory whose members stand `by` bytes farther on."""
    moved, at = bytearray(directory), 0
    while moved[at : at + 4] == b"PK\x01\x02":
        (offset,) = struct.unpack_from("<I", moved, at + 42)
        struct.pack_into("<I", moved, at + 42, (offset + by) & 0xFFFFFFFF)
        at += 46 + sum(struct.unpack_from("<HHH", moved, at + 28))
    return bytes(moved)


def _end(count: int, size: int, start: int) -> bytes:
    return b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, count, count, size, start, 0)


def _shifted(archive: bytes, by: int) -> bytes:
    members, directory = _parts(archive)
    moved = _moved(directory, by)
    return members + moved + _end(moved.count(b"PK\x01\x02"), len(moved), len(members) + by)


def _padded(directory: bytes, size: int) -> bytes:
    """The directory with a comment behind its last entry that makes it `size` bytes long."""
    last, more = directory.rindex(b"PK\x01\x02"), size - len(directory)
    (old,) = struct.unpack_from("<H", directory, last + 32)
    return directory[: last + 32] + struct.pack("<H", old + more) + directory[last + 34 :] + b"c" * more


def _two_directories(good: bytes, evil: bytes) -> bytes:
    """zipfile takes the directory before the end record, torch the one at the stated offset."""
    (evil_members, evil_directory), (good_members, good_directory) = _parts(evil), _parts(good)
    size = max(len(evil_directory), len(good_directory))
    evil_directory, good_directory = _padded(evil_directory, size), _padded(good_directory, size)
    start = len(evil_members) + size
    prepended = start + len(good_members) - len(evil_members)
    moved = _moved(good_directory, start - prepended)
    end = _end(moved.count(b"PK\x01\x02"), size, len(evil_members))
    return evil_members + evil_directory + good_members + moved + end


def _two_zip64_records(good: bytes, evil: bytes) -> bytes:
    """zipfile takes the record before the locator, torch the record that the locator names."""
    (evil_members, evil_directory), (good_members, good_directory) = _parts(evil), _parts(good)
    start = len(evil_members) + len(evil_directory) + 56
    moved = _moved(good_directory, start)
    head = evil_members + evil_directory + _record(evil_directory, len(evil_members)) + good_members
    result = head + moved + _record(moved, len(head))
    result += b"PK\x06\x07" + struct.pack("<IQI", 0, len(evil_members) + len(evil_directory), 1)
    return result + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def _record(directory: bytes, start: int) -> bytes:
    count = directory.count(b"PK\x01\x02")
    return b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(directory), start)


def _with_comment(good: bytes, evil: bytes) -> bytes:
    comment = _shifted(evil, len(good))
    return good[:-2] + struct.pack("<H", len(comment)) + comment


def _tar_in_stream(evil: bytes) -> bytes:
    """torch looks for the tar archive of its first version before it reads a legacy stream."""
    stream, ends = io.BytesIO(_legacy()), []
    for _ in range(3):
        pickle._Unpickler(stream, encoding="utf-8").load()  # type: ignore[attr-defined]
        ends.append(stream.tell())
    good = stream.getvalue()
    head = good[: ends[1]] + b"\x80\x02}(" + text("little_endian") + b"\x88" + text("x") + b"X"
    start = len(head) + 4
    member = _tar_block(b"storages", len(evil))
    body = member + evil + bytes(-len(evil) % 512) + bytes(1024)
    first = head + struct.pack("<I", 512 - start + len(body))
    block = _tar_block(first, 0)
    return first + block[start:] + body + b"u." + good[ends[2] :]


def _tar_block(name: bytes, size: int) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    for at, value in ((100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"), (136, b"00000000000\0")):
        block[at : at + len(value)] = value
    block[124:136] = b"%011o\0" % size
    block[156] = ord(tarfile.REGTYPE)
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _safetensors_pickle(call: bytes) -> bytes:
    """The header's length, 0x2C43, begins with C, whose argument of 0x2C bytes ends within the first name.

    There S takes the rest of the header as a quoted line, to the data, where the pickle goes on.
    """
    size, start = 0x2C43, 2 + 0x2C
    sound = _safetensors()
    length = int.from_bytes(sound[:8], "little")
    header, data = json.loads(sound[8 : 8 + length]), sound[8 + length :]
    added = b"'\n" + call + b"\xff"
    added += bytes(-len(added) % 8)
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [place + len(added) for place in entry["data_offsets"]]
    lead = '{"metadata.'
    first = {"dtype": "U8", "shape": [len(added)], "data_offsets": [0, len(added)]}
    name = lead + "x" * (start - 8 - len(lead)) + "S'"
    body = f'{name}":{json.dumps(first)},{json.dumps(header)[1:]}'.encode()
    return struct.pack("<Q", size) + body.ljust(size) + added + data


def _hiding_frame(call: bytes) -> bytes:
    """C's unpickler drops the rest of a frame if an opcode reads beyond it."""
    module = b"c" + b"X"
    return b"\x95" + struct.pack("<Q", len(module)) + module + call[1:] + b"."
