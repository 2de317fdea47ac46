"""Attacks found by hand, besides the corpus of `hostile.py`."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

import hnloader
from hnloader import CorruptFileError, HypernetworkError, UnsafeFileError
from hnloader.conversion import convert
from hnloader.scanning import scan
from hnloader.ui.sidecars import thumbnail
from tests.support.builders import simple_tree, write
from tests.support.errors import raises
from tests.support.hostile import rezipped, saved

EVIL = b"cposix\nsystem\n(S'true'\ntR."  # of protocol 0: nothing at its beginning says that it is a pickle


def zipped(members: list[tuple[str, bytes, bytes]]) -> bytes:
    """An archive of (name, content, extra field)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content, extra in members:
            info = zipfile.ZipInfo(name)
            info.extra = extra
            archive.writestr(info, content)
    return buffer.getvalue()


def unicode_path(raw: str, other: str) -> bytes:
    """The extra field by which Python since 3.12, and other programs, give a member another name than torch reads."""
    body = struct.pack("<BL", 1, zlib.crc32(raw.encode())) + other.encode()
    return struct.pack("<HH", 0x7075, len(body)) + body


def test_members_with_a_second_name_are_refused_on_every_python(tmp_path: Path) -> None:
    """torch would unpickle the member whose raw name is data.pkl, and Python 3.12 finds a harmless one by that name."""
    with zipfile.ZipFile(io.BytesIO(saved(simple_tree()))) as archive:
        good = [(info.filename, archive.read(info), b"") for info in archive.infolist()]
    pickle = next(name for name, _, _ in good if name.endswith("data.pkl"))
    swapped = [(name, content, b"") for name, content, _ in good if name != pickle]
    harmless = next(content for name, content, _ in good if name == pickle)
    swapped.append(("archive/harmless", harmless, unicode_path("archive/harmless", pickle)))
    swapped.append((pickle, EVIL, unicode_path(pickle, "archive/notes")))
    path = tmp_path / "style.pt"
    path.write_bytes(zipped(swapped))
    for read in (hnloader.load, hnloader.inspect):
        with pytest.raises(UnsafeFileError):
            read(path)
    found = scan(path)
    assert found.verdict == "suspicious"
    assert "posix.system" in found.callables
    extra = struct.pack("<HH", 99, 0) + unicode_path("archive/more", "a")
    path.write_bytes(zipped([*good, ("archive/more", b"x", extra)]))
    with raises(UnsafeFileError, "'archive/more'", "second name"):
        hnloader.load(path)


def test_protocol_0_pickle_is_found_in_any_member(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    with zipfile.ZipFile(io.BytesIO(saved(simple_tree()))) as archive:
        good = [(info.filename, archive.read(info), b"") for info in archive.infolist()]
    path.write_bytes(zipped([*good, ("archive/notes", EVIL, b"")]))
    assert scan(path).verdict == "suspicious"
    for text in (b"class Style:\n    pass\n", b"import os\nos.getcwd()\n", b"3\n", b"notes of mine\n"):
        path.write_bytes(zipped([*good, ("archive/notes", text, b"")]))
        assert scan(path).verdict == "safe", text


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    """Opening a pipe would wait for ever, reading a device never end."""
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    for path in tmp_path.iterdir():
        with raises(HypernetworkError, "pipe"):
            hnloader.load(path)
        assert scan(path).verdict == "unreadable"


def test_header_with_too_many_tensors_is_refused_early(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"8.k.linear.{number}.weight": empty for number in range(20_001)}).encode()
    path = tmp_path / "style.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with raises(CorruptFileError, "20,001"):
        hnloader.inspect(path)


def test_huge_preview_is_not_decoded(tmp_path: Path) -> None:
    """13,000 x 13,000 pixels of one color: below what Pillow itself takes for a bomb, and 500 MB of memory."""
    Image.new("1", (13_000, 13_000)).save(tmp_path / "ink.png")
    assert (tmp_path / "ink.png").stat().st_size < 100_000
    assert thumbnail(tmp_path / "ink.pt") is None
    Image.new("RGB", (2_000, 2_000)).save(tmp_path / "wash.png")
    assert thumbnail(tmp_path / "wash.pt") is not None


def test_unsafe_optimizer_file_is_not_converted(tmp_path: Path) -> None:
    write(tmp_path / "style.pt", simple_tree())
    data = rezipped(saved({}), lambda name, content: EVIL if name.endswith("data.pkl") else content)
    (tmp_path / "style.pt.optim").write_bytes(data)
    result = convert(tmp_path / "style.pt", tmp_path / "style.safetensors")
    assert any("posix.system" in note for note in result.notes)
    assert not (tmp_path / "style.safetensors.optim").exists()
