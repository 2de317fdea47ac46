"""Make the containers of pickles: zip archives and legacy streams of torch.save."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, field

import torch

from lab.fuzz.choices import Choices
from lab.fuzz.makers.pickles import ITEM_SIZES, PickleMaker

MAX_STORAGE = 1 << 14


def storage_data(choices: Choices, kind: str, count: int) -> bytes:
    """Return values for a storage: up to four of the fuzzer's bytes, then zeros."""
    size = max(0, min(count * ITEM_SIZES.get(kind, 4), MAX_STORAGE))
    return choices.raw(min(size, 4)).ljust(size, b"\0")


def plain_zip(choices: Choices) -> bytes:
    """Make a valid archive around a pickle that may have any fault."""
    maker = PickleMaker(choices)
    pickle = maker.whole()
    return archive(choices, _members(choices, maker, pickle), valid=True)


def changed_zip(choices: Choices) -> bytes:
    """Make an archive as torch.save writes it, with up to five bytes of its pickle changed."""
    pickle, *others = _saved()
    data = bytearray(pickle.data)
    for _ in range(choices.below(6)):
        at = choices.below(len(data))
        data[at] = choices.pick(_USUAL_OPCODES) if choices.rarely(3) else choices.below(256)
    return archive(choices, [Member(pickle.name, bytes(data)), *others], valid=True)


_USUAL_OPCODES = b"hqr(tQRKMJX0}).\x85\x86\x87\x89"


@functools.cache
def _saved() -> tuple[Member, ...]:
    """Return the members of a hypernetwork that torch saved, the pickle first."""
    torch.manual_seed(0)
    side = {
        f"linear.{n}.{name}": torch.randn(shape) for n in (0, 1) for name, shape in (("weight", (4, 4)), ("bias", 4))
    }
    file = io.BytesIO()
    torch.save({4: (side, {name: tensor.half() for name, tensor in side.items()}), "name": "ink"}, file)
    with zipfile.ZipFile(file) as saved:
        members = [Member(info.filename.encode(), saved.read(info)) for info in saved.infolist()]
    return tuple(sorted(members, key=lambda member: not member.name.endswith(b"data.pkl")))


def broken_zip(choices: Choices) -> bytes:
    """Make an archive with faults around a valid hypernetwork."""
    maker = PickleMaker(Choices(b""))
    pickle = maker.whole()
    members = _members(choices, maker, pickle)
    for _ in range(choices.below(3)):
        where = choices.below(len(members) + 1)
        name = choices.pick(ODD_NAMES) if choices.rarely(2) else choices.text()
        members.insert(where, Member(name.encode("utf-8", "replace"), choices.raw(8)))
    return archive(choices, members, valid=False)


def legacy(choices: Choices) -> bytes:
    """Make a legacy stream: five pickles, then the storages."""
    maker = PickleMaker(choices, legacy=True)
    tree = maker.whole()
    keys = [key for key in maker.storages if not choices.rarely(60)]
    if choices.rarely(20):
        keys.append(choices.text())
    small = PickleMaker(choices)
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    if choices.rarely(40):
        magic = b"\x80\x02" + small.integer(choices.number()) + b"."
    protocol = b"\x80\x02M\xe9\x03." if not choices.rarely(40) else b"\x80\x02" + small.value(2) + b"."
    system = b"\x80\x02}(" + small.string("little_endian") + b"\x88"
    system += small.string("protocol_version") + b"M\xe9\x03u."
    listed = b"\x80\x02](" + b"".join(small.string(key) for key in keys) + b"e."
    data = magic + protocol + system + tree + listed
    for key in keys:
        kind, count = maker.storages.get(key, ("FloatStorage", 0))
        stated = choices.number() if choices.rarely(40) else count
        data += struct.pack("<q", max(-(1 << 63), min(stated, (1 << 63) - 1))) + storage_data(choices, kind, count)
    return _cut(choices, data)


@dataclass
class Member:
    """A member of an archive, and the false values of its headers."""

    name: bytes
    data: bytes
    method: int = 0
    local: dict[str, int] = field(default_factory=dict)
    central: dict[str, int] = field(default_factory=dict)
    local_name: bytes | None = None
    extra: bytes = b""


ODD_NAMES = (
    "archive/data.pkl",
    "archive/data/0",
    "archive/DATA/0",
    "other/data.pkl",
    "data.pkl",
    "archive/code/a.py",
    "archive/constants.pkl",
    "archive/byteorder",
    "archive/version",
    "/archive/data/0",
    "archive/../data/0",
    "archive/data/",
    "archive\\data.pkl",
    ".format_version",
)
_FIELDS = ("version", "flags", "method", "crc", "packed", "size", "extra", "offset", "disk", "comment")


def _members(choices: Choices, maker: PickleMaker, pickle: bytes) -> list[Member]:
    members = [Member(b"archive/data.pkl", pickle), Member(b"archive/version", b"3\n")]
    if choices.rarely(4):
        members.append(Member(b"archive/byteorder", choices.pick((b"little", b"big", b"middle"))))
    for key, (kind, count) in maker.storages.items():
        if not choices.rarely(100):
            data = storage_data(choices, kind, count)
            members.append(Member(b"archive/data/" + key.encode("utf-8", "replace"), data))
    return members


def archive(choices: Choices, members: list[Member], *, valid: bool) -> bytes:
    """Return the bytes of an archive; with `valid`, all its headers are true."""
    if not valid:
        for member in members:
            _mutate(choices, member)
        if choices.rarely(12):
            members.append(members[choices.below(len(members))])
    data = choices.raw(choices.below(8)) if not valid and choices.rarely(12) else b""
    central = b""
    for member in members:
        offset = len(data)
        packed = member.data if member.method == 0 else _deflated(member.data)
        truth = {
            "version": 20,
            "flags": 0,
            "method": member.method,
            "crc": zlib.crc32(member.data),
            "packed": len(packed),
            "size": len(member.data),
            "extra": len(member.extra),
            "offset": offset,
            "disk": 0,
            "comment": 0,
        }
        name = member.name if member.local_name is None else member.local_name
        data += _local({**truth, **member.local}, name) + member.extra + packed
        central += _central({**truth, **member.central}, member.name) + member.extra
    end = {"disk": 0, "start": 0, "here": len(members), "all": len(members), "size": len(central), "at": len(data)}
    if not valid and choices.rarely(6):
        end[choices.pick(tuple(end))] = choices.number()
    packed_end = struct.pack(
        "<4s4H2LH",
        b"PK\x05\x06",
        *(end[key] & 0xFFFF for key in ("disk", "start", "here", "all")),
        *(end[key] & 0xFFFFFFFF for key in ("size", "at")),
        0,
    )
    whole = data + central + packed_end
    return whole if valid else _cut(choices, whole)


def _mutate(choices: Choices, member: Member) -> None:
    if choices.rarely(6):
        member.method = choices.pick((8, 0, 12, 14, 93, 99))
    if choices.rarely(6):
        member.central[choices.pick(_FIELDS)] = choices.number()
    if choices.rarely(8):
        member.local[choices.pick(_FIELDS[:7])] = choices.number()
    if choices.rarely(16):
        member.local_name = choices.pick(ODD_NAMES).encode()
    if choices.rarely(16):
        member.extra = b"\x01\x00" + struct.pack("<H", choices.pick((8, 16, 24, 4))) + choices.raw(24).ljust(24, b"\0")
    if choices.rarely(24):
        member.method, member.data = 8, bytes(choices.pick((1 << 12, 1 << 20)))


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _local(values: dict[str, int], name: bytes) -> bytes:
    short = [values[key] & 0xFFFF for key in ("version", "flags", "method")]
    sizes = [values[key] & 0xFFFFFFFF for key in ("crc", "packed", "size")]
    return struct.pack("<4s5H3L2H", b"PK\x03\x04", *short, 0, 33, *sizes, len(name), values["extra"] & 0xFFFF) + name


def _central(values: dict[str, int], name: bytes) -> bytes:
    short = [values[key] & 0xFFFF for key in ("version", "flags", "method")]
    sizes = [values[key] & 0xFFFFFFFF for key in ("crc", "packed", "size")]
    lengths = [len(name), values["extra"] & 0xFFFF, values["comment"] & 0xFFFF, values["disk"] & 0xFFFF]
    made = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 20, *short, 0, 33, *sizes, *lengths, 0, 0, values["offset"] & 0xFFFFFFFF
    )
    return made + name


def _cut(choices: Choices, data: bytes) -> bytes:
    if choices.rarely(20):
        return data[: choices.below(len(data) + 1)]
    if choices.rarely(20):
        return data + choices.raw(8)
    return data
