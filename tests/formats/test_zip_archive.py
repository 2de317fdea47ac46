"""Zip archives in other forms than torch.save's are refused."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import pytest

from hnloader import CorruptFileError, HypernetworkError, UnsafeFileError
from hnloader.formats import zip_archive
from tests.support.damage import ZIP, assert_refused, outcome, rezipped


def test_compressed_archives_load() -> None:
    data = rezipped(ZIP, compression=zipfile.ZIP_DEFLATED)
    assert outcome(data) == outcome(ZIP)


def test_duplicate_member_names_are_refused() -> None:
    result = io.BytesIO(ZIP)
    with zipfile.ZipFile(result, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")
    assert_refused(result.getvalue(), UnsafeFileError, "same name")


def test_second_pickle_is_refused() -> None:
    result = io.BytesIO(ZIP)
    with zipfile.ZipFile(result, "a") as archive:
        archive.writestr("other/data.pkl", b"N.")
    assert_refused(result.getvalue(), UnsafeFileError, "folder")


def changed_entry(field: int, layout: str, value: int, member: bytes = b"data/0") -> bytes:
    data = bytearray(rezipped(ZIP))
    at = data.rindex(member)
    start = data.rindex(b"PK\x01\x02", 0, at)
    struct.pack_into(layout, data, start + field, value)
    return bytes(data)


def test_encrypted_member_is_refused() -> None:
    assert_refused(changed_entry(8, "<H", 1), UnsafeFileError, "two headers", "data/0")


def test_overlapping_members_are_refused() -> None:
    data = rezipped(ZIP)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        offset = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data.pkl"))).header_offset
    assert_refused(changed_entry(42, "<I", offset), UnsafeFileError, "member")


def test_member_beyond_the_end_is_refused() -> None:
    assert_refused(changed_entry(42, "<I", len(ZIP) * 2), UnsafeFileError, "member")


def test_member_with_two_sizes_is_refused() -> None:
    assert_refused(changed_entry(24, "<I", 1 << 30), HypernetworkError, "data/0")


def test_unknown_compression_is_refused() -> None:
    assert_refused(changed_entry(10, "<H", 99, member=b"data.pkl"), UnsafeFileError, "two headers", "data.pkl")


def test_zip_bomb_is_refused() -> None:
    result = io.BytesIO(ZIP)
    with zipfile.ZipFile(result, "a", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/99", bytes(10_000_000))
    assert_refused(result.getvalue(), UnsafeFileError, "data/99", "100 times")


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archive, "MAX_MEMBERS", 5)
    assert_refused(ZIP, CorruptFileError, "more than 5")


def test_too_long_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archive, "MAX_DIRECTORY_SIZE", 100)
    assert_refused(ZIP, CorruptFileError, "list of members")


@pytest.mark.parametrize(
    ("name", "readers"),
    [("/data/0", ["load"]), ("/data.pkl", ["load", "inspect"]), ("/byteorder", ["load", "inspect"])],
)
def test_compressed_member_shorter_than_declared_is_refused(name: str, readers: list[str]) -> None:
    data = bytearray(rezipped(ZIP, compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(name))
        content = archive.read(info)
        start = info.header_offset + 30 + len(info.filename)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    short = packer.compress(content[:-4]) + packer.flush()
    packed = short.ljust(info.compress_size, b"\0")
    assert len(packed) == info.compress_size
    data[start : start + info.compress_size] = packed
    crc = data.replace(info.CRC.to_bytes(4, "little"), zlib.crc32(content[:-4]).to_bytes(4, "little"))
    assert_refused(bytes(crc), CorruptFileError, info.filename, readers=readers)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_methods_are_refused(method: int) -> None:
    assert_refused(rezipped(ZIP, compression=method), CorruptFileError, f"method {method}")
