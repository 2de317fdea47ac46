"""Compare hnloader with other readers of the same zip archive: all must find the same members."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from typing import Any

import torch

from hnloader.errors import HypernetworkError
from hnloader.formats.checkpoint import read_checkpoint
from hnloader.formats.source import open_source
from hnloader.formats.zip_archive import DEFLATED, open_archive


class TwoReadingsError(AssertionError):
    """Another reader finds different contents."""


def check(data: bytes) -> None:
    """Raise TwoReadingsError if hnloader accepts an archive that another program reads differently."""
    try:
        with open_source(io.BytesIO(data)) as source:
            read_checkpoint(source)
            archive = open_archive(source)
            ours = {name: archive.read(member) for name, member in archive.members.items()}
    except HypernetworkError:
        return
    for what, theirs in (("zipfile", _by_zipfile(data)), ("a stream reader", _by_local_headers(data))):
        if theirs != ours:
            raise TwoReadingsError(f"{what} finds {sorted(theirs)}, but hnloader {sorted(ours)}.")
    reader: Any = torch._C.PyTorchFileReader(io.BytesIO(data))
    folder = archive.folder
    for name, content in ours.items():
        if reader.has_record(name.removeprefix(folder)) and reader.get_record(name.removeprefix(folder)) != content:
            raise TwoReadingsError(f"PyTorch reads {name!r} differently.")
    if reader.get_record("data.pkl") != ours[f"{folder}data.pkl"]:
        raise TwoReadingsError("PyTorch reads data.pkl differently.")
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:"):
            pass
    except tarfile.TarError:
        return
    raise TwoReadingsError("The file is a tar archive too.")


def _by_zipfile(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _by_local_headers(data: bytes) -> dict[str, bytes]:
    """Read the members as a program does that receives the archive through a pipe."""
    found: dict[str, bytes] = {}
    at = 0
    while data[at : at + 4] == b"PK\x03\x04":
        _, flags, method, _, _, _, size, _, name_size, extra_size = struct.unpack_from("<5HI2I2H", data, at + 4)
        name = data[at + 30 : at + 30 + name_size].decode()
        start = at + 30 + name_size + extra_size
        if method == DEFLATED:
            stream = zlib.decompressobj(-15)
            found[name] = stream.decompress(data[start:])
            at = len(data) - len(stream.unused_data)
        else:
            if flags & 8 and not size:
                size = _size_by_descriptor(data, start)
            found[name] = data[start : start + size]
            at = start + size
        if flags & 8:
            at += 24 if data[at + 24 : at + 28] in (b"PK\x03\x04", b"PK\x01\x02") else 16
    return found


def _size_by_descriptor(data: bytes, start: int) -> int:
    """Return the size of a stored member: a descriptor that states the distance ends it."""
    at = data.find(b"PK\x07\x08", start)
    while at >= 0:
        if int.from_bytes(data[at + 8 : at + 12], "little") == at - start:
            return at - start
        at = data.find(b"PK\x07\x08", at + 1)
    raise TwoReadingsError("A member without a descriptor.")
