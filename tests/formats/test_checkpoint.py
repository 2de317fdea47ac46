"""Damaged files, and files made to cost time or memory, raise only errors of the package."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hnloader
from hnloader import CorruptFileError, HypernetworkError, UnsafeFileError, UnsupportedArchitectureError
from hnloader.formats import checkpoint, pickles, zip_archive
from hnloader.formats.checkpoint import LEGACY_MAGIC_NUMBER
from hnloader.formats.pickles import MalformedPickleError, read_pickle
from hnloader.formats.source import Source
from tests.support.builders import Recipe, make_sides, metadata, simple_tree, tree
from tests.support.errors import raises
from tests.support.paths import GOLDENS

READERS: dict[str, Callable[[io.BytesIO], object]] = {"load": hnloader.load, "inspect": hnloader.inspect}


def saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def saved_safetensors(tmp_path: Path) -> bytes:
    path = tmp_path / "s.safetensors"
    hnloader.save(hnloader.load(io.BytesIO(saved(simple_tree()))), path)
    return path.read_bytes()


def rezipped(
    data: bytes, change: Callable[[str, bytes], bytes | None] = lambda name, content: content, **options: int
) -> bytes:
    """The archive with its members changed; a member for which `change` gives None is left out."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(result, "w", **options) as changed:
        for info in archive.infolist():
            content = change(info.filename, archive.read(info))
            if content is not None:
                changed.writestr(info.filename, content)
    return result.getvalue()


def assert_refused(
    data: bytes, kind: type[HypernetworkError], *facts: object, readers: Sequence[str] = ("load", "inspect")
) -> None:
    for reader in readers:
        with raises(kind, *facts):
            READERS[reader](io.BytesIO(data))


def outcome(data: bytes) -> object:
    """Return the loaded tensors and metadata; None for an error of the package."""
    try:
        hypernetwork = hnloader.load(io.BytesIO(data))
    except HypernetworkError as error:
        assert str(error)
        return None
    return {name: tensor.tolist() for name, tensor in hypernetwork.state_dict().items()}, hypernetwork.metadata


ZIP = saved(simple_tree())
LEGACY = saved(simple_tree(), legacy=True)


# -- cut off and flipped


@pytest.mark.parametrize("data", [ZIP, LEGACY], ids=["zip", "legacy"])
@settings(max_examples=150, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_files_cut_off_anywhere_are_refused(data: bytes, cut: float) -> None:
    piece = data[: int(len(data) * cut)]
    for read in READERS.values():
        with pytest.raises(HypernetworkError):
            read(io.BytesIO(piece))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_every_prefix_is_refused(kind: str, tmp_path: Path) -> None:
    data = {"zip": ZIP, "legacy": LEGACY, "safetensors": saved_safetensors(tmp_path)}[kind]
    for size in range(len(data)):
        for read in READERS.values():
            with pytest.raises(HypernetworkError):
                read(io.BytesIO(data[:size]))


flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def flipped(data: bytes, changes: list[tuple[float, int]]) -> bytes:
    result = bytearray(data)
    for place, mask in changes:
        result[int(len(data) * place)] ^= mask
    return bytes(result)


@settings(max_examples=300, deadline=None)
@given(changes=flips)
def test_flipped_bytes_of_a_zip_change_nothing_or_are_refused(changes: list[tuple[float, int]]) -> None:
    assert outcome(flipped(ZIP, changes)) in (None, outcome(ZIP))


@settings(max_examples=300, deadline=None)
@given(changes=flips)
def test_flipped_bytes_of_a_legacy_stream_raise_only_package_errors(changes: list[tuple[float, int]]) -> None:
    data = flipped(LEGACY, changes)  # the stream has no checksums: other values may well be read
    outcome(data)
    try:
        hnloader.inspect(io.BytesIO(data))
    except HypernetworkError as error:
        assert str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in sorted(GOLDENS.glob("*.pt")) if path.stat().st_size < 100_000])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_goldens_raise_only_package_errors(name: str, data: st.DataObject) -> None:
    content = (GOLDENS / name).read_bytes()
    pickle_start = max(content.find(b"\x80\x02"), 0)
    window = slice(pickle_start, pickle_start + 4000) if data.draw(st.booleans()) else slice(len(content) - 3000, None)
    hot = bytearray(content[window])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(hot) - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete"]))
        if kind == "set":
            hot[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            hot[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        else:
            del hot[place : place + data.draw(st.integers(1, 16))]
    start, stop, _ = window.indices(len(content))
    damaged = content[:start] + bytes(hot) + content[stop:]
    for read in READERS.values():
        try:
            read(io.BytesIO(damaged))
        except HypernetworkError as error:
            assert str(error)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_random_opcodes_return_a_value_or_raise_malformed(data: bytes) -> None:
    try:
        read_pickle(b"\x80\x02" + data)
    except MalformedPickleError as error:
        assert str(error)


# -- sizes that do not add up


def tensor_code(shape: bytes, stride: bytes, offset: bytes = b"K\x00", count: bytes = b"K\x80") -> bytes:
    """A tensor on the storage "0" of float32, each part as the opcodes that make it."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"
    arguments = storage + offset + shape + stride + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def with_extra(code: bytes) -> bytes:
    """The small file with one more piece of metadata, made by `code`."""

    def change(name: str, content: bytes) -> bytes:
        return content[:-1] + b"X\x01\x00\x00\x00x" + code + b"s." if name.endswith("/data.pkl") else content

    return rezipped(ZIP, change)


HUGE = b"\x8a\x09" + (1 << 70).to_bytes(9, "little")
BAD_TENSORS = {
    "larger than its storage": tensor_code(b"K\x81\x85", b"K\x01\x85"),
    "strides beyond its storage": tensor_code(b"K\x02K\x02\x86", b"K\x7fK\x02\x86"),
    "offset beyond its storage": tensor_code(b"K\x01\x85", b"K\x01\x85", offset=b"K\x80"),
    "negative offset": tensor_code(b"K\x01\x85", b"K\x01\x85", offset=b"J\xff\xff\xff\xff"),
    "negative size": tensor_code(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "negative stride": tensor_code(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
    "one value repeated": tensor_code(b"M\xff\xff\x85", b"K\x00\x85"),
    "negative offset of nothing": tensor_code(b"K\x00\x85", b"K\x01\x85", offset=b"J\xf9\xff\xff\xff"),
    "huge size": tensor_code(HUGE + b"\x85", b"K\x01\x85"),
    "huge size of nothing": tensor_code(b"K\x00" + HUGE + b"\x86", b"K\x01K\x01\x86"),
    "huge stride of nothing": tensor_code(b"K\x00\x85", HUGE + b"\x85"),
    "huge offset of nothing": tensor_code(b"K\x00\x85", b"K\x01\x85", offset=HUGE),
    "more sizes than strides": tensor_code(b"K\x02K\x02\x86", b"K\x01\x85"),
    "sizes of text": tensor_code(b"U\x01a\x85", b"K\x01\x85"),
    "sizes that are True": tensor_code(b"\x88\x85", b"K\x01\x85"),
    "seventeen dimensions": tensor_code(b"(" + b"K\x01" * 17 + b"t", b"(" + b"K\x01" * 17 + b"t"),
    "a storage declared too large": tensor_code(b"K\x01\x85", b"K\x01\x85", count=b"M\x00\x02"),
    "a storage declared too small": tensor_code(b"K\x01\x85", b"K\x01\x85", count=b"K\x01"),
    "a storage of a huge count": tensor_code(b"K\x01\x85", b"K\x01\x85", count=HUGE),
    "a storage of a negative count": tensor_code(b"K\x01\x85", b"K\x01\x85", count=b"J\xff\xff\xff\xff"),
    "a list that contains itself": b"]q\xf0h\xf0a",
    "a dict that contains itself": b"}q\xf0X\x01\x00\x00\x00ah\xf0s",
    "a memo that was never put": b"h\xf9",
    "a tuple in a dict's key": b"}K\x01\x85Ns",
    "a dict in a dict's key": b"}}Ns",
    "a large integer in a dict's key": b"}" + HUGE + b"Ns",
    "a large integer in a set": b"\x8f(" + HUGE + b"\x90",
    "items of a number": b"K\x01(K\x01K\x02u",
    "an odd number of items": b"}(K\x01u",
    "text that is cut off": b"X\xff\xff\xff\x7fabc",
    "bytes of a huge size": b"\x8e" + b"\xff" * 8,
    "an integer of a huge size": b"\x8b\xff\xff\xff\x7f",
    "an integer of a negative size": b"\x8b\xff\xff\xff\xff",
    "an integer of many digits": b"I" + b"9" * 5000 + b"\n",
    "a decimal that is none": b"Fabc\n",
    "text of broken quotes": b"S'abc\n",
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_impossible_tensors_and_values_are_refused(name: str) -> None:
    assert_refused(with_extra(BAD_TENSORS[name]), CorruptFileError)


def test_valid_extra_tensor_loads() -> None:
    found = hnloader.load(io.BytesIO(with_extra(tensor_code(b"K\x04K\x02\x86", b"K\x02K\x01\x86"))))
    assert found.metadata["x"].shape == (4, 2)  # type: ignore[attr-defined]


def test_missing_storage_is_named() -> None:
    data = rezipped(ZIP, lambda name, content: None if name.endswith("/data/1") else content)
    assert_refused(data, CorruptFileError, "'1'")


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_storage_of_wrong_size_is_named(size: int) -> None:
    data = rezipped(ZIP, lambda name, content: bytes(size) if name.endswith("/data/1") else content)
    assert_refused(data, CorruptFileError, "'1'", f"{size:,}")


def test_checksum_finds_damaged_storage() -> None:
    at = ZIP.index(b"data/0") + 200
    data = ZIP[:at] + bytes([ZIP[at] ^ 1]) + ZIP[at + 1 :]
    assert_refused(data, CorruptFileError, "CRC-32", readers=("load",))


def test_legacy_stream_with_wrong_storage_sizes() -> None:
    state = simple_tree()
    data = saved(state, legacy=True)
    count = struct.pack("<q", 8)
    at = data.rindex(count)
    assert_refused(data[:at] + struct.pack("<q", 9) + data[at + 8 :], CorruptFileError, "8 values", "9")
    assert_refused(data[:at] + struct.pack("<q", -1) + data[at + 8 :], CorruptFileError, "8 values", "-1")
    assert_refused(data[:-4], CorruptFileError)


def test_legacy_stream_with_wrong_list_of_storages() -> None:
    head = pickle.dumps(LEGACY_MAGIC_NUMBER, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    body = b"\x80\x02}K\x08" + tensor_code(b"K\x01\x85", b"K\x01\x85") + b"s."
    for keys in ([], ["1"], ["0", "0"], None, {"0": 1}):
        assert_refused(head + body + pickle.dumps(keys, 2) + bytes(600), CorruptFileError, "list of storages")


def test_legacy_stream_of_unknown_protocol_or_byte_order() -> None:
    magic, one, two = pickle.dumps(LEGACY_MAGIC_NUMBER, 2), pickle.dumps(1001, 2), pickle.dumps(1002, 2)
    rest = pickle.dumps({8: 1}, 2) + pickle.dumps([], 2)
    assert_refused(magic + two + pickle.dumps({"little_endian": True}, 2) + rest, CorruptFileError, "1002")
    assert_refused(
        magic + one + pickle.dumps({"little_endian": False}, 2) + rest, UnsupportedArchitectureError, "big-endian"
    )


def test_big_endian_zip_is_refused() -> None:
    # torch 2.0 writes no such member
    result = io.BytesIO(rezipped(ZIP, lambda name, content: None if name.endswith("byteorder") else content))
    with zipfile.ZipFile(result, "a") as archive:
        archive.writestr("archive/byteorder", b"big")
    assert_refused(result.getvalue(), UnsupportedArchitectureError, "big-endian")


# -- zip archives that are not as they seem


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


def test_storages_that_unpack_to_too_much_are_refused() -> None:
    sparse = (torch.rand(600_000, generator=torch.Generator().manual_seed(0)) < 0.02).to(torch.uint8)
    data = rezipped(saved(simple_tree(x=sparse[:1])), compression=zipfile.ZIP_DEFLATED)
    assert checkpoint.MAX_SHARING < len(sparse) / len(data) < zip_archive.MAX_RATIO
    assert_refused(data, CorruptFileError, "8 times")


def test_many_views_of_one_storage_are_refused() -> None:
    shared = torch.zeros(10_000)
    data = saved(simple_tree(x=[shared] * 50))
    assert_refused(data, CorruptFileError, "8 times")


def test_tensors_that_share_a_storage_load() -> None:
    shared = torch.randn(40)
    found = hnloader.load(io.BytesIO(saved(simple_tree(x=shared[:30], y=shared[20:].reshape(4, 5).T))))
    assert torch.equal(found.metadata["x"], shared[:30])  # type: ignore[arg-type]
    assert torch.equal(found.metadata["y"], shared[20:].reshape(4, 5).T)  # type: ignore[arg-type]


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archive, "MAX_MEMBERS", 5)
    assert_refused(ZIP, CorruptFileError, "more than 5")


def test_too_long_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archive, "MAX_DIRECTORY_SIZE", 100)
    assert_refused(ZIP, CorruptFileError, "list of members")


# -- pickles that cost much for their size


def refuse_pickle(code: bytes, fact: object) -> None:
    with raises(MalformedPickleError, fact):
        read_pickle(code)


def test_deep_nesting_is_refused() -> None:
    refuse_pickle(b"]" * 100_000 + b"a" * 99_999 + b".", pickles.MAX_DEPTH)
    refuse_pickle(b"N" + b"\x85" * 100_000 + b".", pickles.MAX_DEPTH)


def test_nesting_up_to_the_limit_loads() -> None:
    depth = pickles.MAX_DEPTH
    assert read_pickle(b"N" + b"\x85" * depth + b".").value is not None
    refuse_pickle(b"N" + b"\x85" * (depth + 1) + b".", pickles.MAX_DEPTH)


def test_billion_laughs_is_refused() -> None:
    code = b"K\x00q\x00"
    for level in range(1, 30):
        code += b"(" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"tq" + bytes([level])
    refuse_pickle(b"(" + code + b"t.", "500,000")


def test_billion_laughs_through_calls_is_refused() -> None:
    code = b"]q\x00(" + b"K\x00" * 1000 + b"e0"
    code += b"cbuiltins\nfrozenset\nh\x00\x85R0" * 5000
    refuse_pickle(code + b"N.", "500,000")


OLD_TEXTS = {
    "STRING": lambda data: b"S'" + data.decode("latin1").encode("unicode_escape") + b"'\n",
    "BINSTRING": lambda data: b"T" + struct.pack("<i", len(data)) + data,
    "SHORT_BINSTRING": lambda data: b"U" + bytes([len(data)]) + data,
}


@pytest.mark.parametrize("opcode", OLD_TEXTS)
def test_python_2_text_is_read_as_utf_8(opcode: str) -> None:
    code = OLD_TEXTS[opcode]("Größe ☃".encode())
    assert read_pickle(code + b".").value == "Größe ☃" == pickle.loads(code + b".", encoding="utf-8")
    data = with_extra(code)
    assert hnloader.load(io.BytesIO(data)).metadata["x"] == "Größe ☃"
    if opcode == "SHORT_BINSTRING":  # the only one of them that torch reads with weights_only
        assert_as_torch(data)


@pytest.mark.parametrize("opcode", OLD_TEXTS)
@pytest.mark.parametrize("data", [b"Gr\xf6\xdfe", b"\xed\xa0\x80", b"\xff"])
def test_other_python_2_text_is_refused_and_later_calls_are_named(opcode: str, data: bytes) -> None:
    code = OLD_TEXTS[opcode](data)
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(code + b".", encoding="utf-8")
    assert_refused(with_extra(code), CorruptFileError, "UTF-8")
    assert_refused(with_extra(code + b"0cos\nsystem\nN\x85R"), UnsafeFileError, "os.system")


def test_too_many_opcodes_are_refused() -> None:
    refuse_pickle(b"N0" * pickles.MAX_OPCODES, "opcodes")


@pytest.mark.parametrize(
    "keys",
    [
        [(k * ((1 << 61) - 1)) for k in range(1 << 60, (1 << 60) + 2000)],
        [tuple(-1 - ((n >> bit) & 1) for bit in range(11)) for n in range(2000)],
    ],
    ids=["integers", "tuples"],
)
def test_keys_of_equal_hashes_are_refused(keys: list[object]) -> None:
    """They make each insertion look at all before it: quadratic time."""
    assert len({hash(key) for key in keys}) < 10
    for content in (dict.fromkeys(keys), set(keys), frozenset(keys)):
        for protocol in (2, 4):
            refuse_pickle(pickle.dumps(content, protocol), type(keys[0]).__name__)


# -- safetensors


def with_header(change: Callable[[dict], None], data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def about(header: dict, **changes: object) -> None:
    described = json.loads(header["__metadata__"]["hypernetwork"]) | changes
    header["__metadata__"]["hypernetwork"] = json.dumps(described)


def moved(header: dict, name: str, by: int) -> None:
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]


BAD_HEADERS: dict[str, tuple[Callable[[dict], object], type[HypernetworkError], str]] = {
    "no text metadata": (lambda h: h.update(__metadata__={"hypernetwork": 3}), CorruptFileError, "metadata"),
    "no JSON": (lambda h: h["__metadata__"].update(hypernetwork="{"), CorruptFileError, "JSON"),
    "no layout": (lambda h: about(h, layout=None), CorruptFileError, "layout"),
    "a newer layout": (lambda h: about(h, layout=2), UnsupportedArchitectureError, "layout 2"),
    "no widths": (lambda h: about(h, widths=None), CorruptFileError, "widths"),
    "a width more": (lambda h: about(h, widths=[8, 9]), UnsupportedArchitectureError, "width 9"),
    "a width less": (lambda h: about(h, widths=[9]), HypernetworkError, "widths"),
    "metadata of an unknown type": (lambda h: about(h, metadata={"x": {"code": "1"}}), CorruptFileError, "damaged"),
    "a missing metadata tensor": (lambda h: about(h, metadata={"x": {"tensor": "y"}}), CorruptFileError, "damaged"),
    "keys of equal hashes": (
        lambda h: about(h, metadata={"x": {"set": [{"tuple": [-1]}]}}),
        CorruptFileError,
        "tuple",
    ),
    "an integer of many digits": (lambda h: about(h, step=int("9" * 4000)), CorruptFileError, "digits"),
    "deep nesting": (
        lambda h: h["__metadata__"].update(hypernetwork="[" * 100_000 + "]" * 100_000),
        CorruptFileError,
        "JSON",
    ),
    "overlapping tensors": (lambda h: moved(h, "8.v.linear.2.weight", -4), CorruptFileError, "8.v.linear.2.weight"),
    "a tensor behind the end": (lambda h: moved(h, "8.k.linear.0.bias", 1 << 40), CorruptFileError, "damaged"),
    "a negative offset": (lambda h: moved(h, "8.k.linear.0.bias", -(1 << 40)), CorruptFileError, "damaged"),
    "a negative size": (lambda h: h["8.k.linear.0.bias"].update(shape=[-16]), CorruptFileError, "damaged"),
    "a huge size": (lambda h: h["8.k.linear.0.bias"].update(shape=[1 << 60, 1 << 60]), CorruptFileError, "damaged"),
    "an unknown dtype": (lambda h: h["8.k.linear.0.bias"].update(dtype="F4"), HypernetworkError, "linear.0.bias"),
    "an entry that is none": (lambda h: h.update({"8.k.linear.0.bias": 3}), CorruptFileError, "damaged"),
    "a strange name": (lambda h: h.update(odd=h.pop("8.k.linear.0.bias")), CorruptFileError, "'odd'"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_damaged_headers_are_refused(name: str, tmp_path: Path) -> None:
    change, kind, words = BAD_HEADERS[name]
    assert_refused(with_header(lambda header: change(header) and None, saved_safetensors(tmp_path)), kind, words)


def test_header_that_is_not_json_is_refused(tmp_path: Path) -> None:
    data = saved_safetensors(tmp_path)
    assert_refused(data[:8] + b"{" * int.from_bytes(data[:8], "little") + data[400:], CorruptFileError)


def test_duplicate_tensor_name_is_refused(tmp_path: Path) -> None:
    data = saved_safetensors(tmp_path)
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].rstrip()
    name = b'"8.k.linear.0.bias":'
    entry = text[text.index(name) :].split(b"}")[0] + b"}"
    doubled = text[:-1] + b"," + entry + b"}"
    assert_refused(
        len(doubled).to_bytes(8, "little") + doubled + data[8 + size :], CorruptFileError, "8.k.linear.0.bias"
    )


@settings(max_examples=150, deadline=None)
@given(changes=flips)
def test_flipped_bytes_of_safetensors_raise_only_package_errors(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    data = flipped(saved_safetensors(tmp_path_factory.mktemp("st")), changes)
    for read in READERS.values():
        try:
            read(io.BytesIO(data))
        except HypernetworkError as error:
            assert str(error)


# -- whatever this reader accepts, torch accepts, with the same tensors


def assert_as_torch(data: bytes) -> None:
    found = hnloader.load(io.BytesIO(data))
    expected = torch.load(io.BytesIO(data), weights_only=True)
    for width in found.widths:
        for index, side in enumerate(("k", "v")):
            stored = {name.replace("linear1.", "linear.0.").replace("linear2.", "linear.1."): tensor
                      for name, tensor in expected[width][index].items()}  # fmt: skip
            own = found.side(width, side).state_dict()
            assert own.keys() == stored.keys()
            for name, tensor in own.items():
                assert tensor.dtype == stored[name].dtype
                assert torch.equal(tensor, stored[name])
    assert found.metadata == {key: value for key, value in expected.items() if isinstance(key, str)}


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.pt")), ids=lambda path: path.stem)
def test_goldens_equal_torch_load(path: Path) -> None:
    assert_as_torch(path.read_bytes())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_generated_files_equal_torch_load(dtype: torch.dtype, legacy: bool) -> None:
    recipe = Recipe((1, 1.5, 2, 1), "prelu", True, True, (0, 0.1, 0.2, 0))
    content = tree(make_sides(recipe, (8, 12), dtype=dtype), metadata(recipe, "2022-11"), dtype=dtype)
    assert_as_torch(saved(content, legacy=legacy))


# -- files that are not what they were when they were opened


def test_file_changed_during_reading_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(saved_safetensors(tmp_path))
    hnloader.save(hnloader.load(path), path)
    os.utime(path, (1, 1))
    read = Source.pieces

    def meanwhile(source: Source, offset: int, size: int) -> Iterator[bytearray]:
        content = path.read_bytes()
        path.write_bytes(content[:-4] + bytes(4))
        return read(source, offset, size)

    monkeypatch.setattr(Source, "pieces", meanwhile)
    for use in (hnloader.load, lambda path: hnloader.convert(path, tmp_path / "made.pt")):
        with raises(CorruptFileError, path):
            use(path)
        os.utime(path, (1, 1))
    assert not (tmp_path / "made.pt").exists()


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


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8"])
def test_header_that_is_not_utf_8_is_refused(encoding: str, tmp_path: Path) -> None:
    data = saved_safetensors(tmp_path)
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode().replace('"style"', '"\ud800"').replace('"format":"pt"', '"format":"\ud800"')
    encoded = header.encode(encoding, "surrogatepass").removeprefix(b"\xff\xfe")
    changed = len(encoded).to_bytes(8, "little") + encoded + data[8 + size :]
    assert_refused(changed, CorruptFileError, "header")


@pytest.mark.parametrize("number", ["1e999", "9" * 400, "-1E400", "NaN", "Infinity"])
def test_header_numbers_outside_of_float64_are_refused(number: str, tmp_path: Path) -> None:
    data = saved_safetensors(tmp_path)
    size = int.from_bytes(data[:8], "little")
    for value, refused in ((number, True), ("1e300", False)):
        header = data[8 : 8 + size].replace(b'"dtype"', b'"more":' + value.encode() + b',"dtype"', 1)
        changed = len(header).to_bytes(8, "little") + header + data[8 + size :]
        if refused:
            with pytest.raises(safetensors.SafetensorError):
                safetensors.deserialize(changed)
            assert_refused(changed, CorruptFileError, "header")
        else:
            assert {name for name, _ in safetensors.deserialize(changed)}
            hnloader.load(io.BytesIO(changed))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_methods_are_refused(method: int) -> None:
    assert_refused(rezipped(ZIP, compression=method), CorruptFileError, f"method {method}")


@pytest.mark.parametrize(
    "made", [b"ccollections\nOrderedDict\n)\x81", b"(ccollections\nOrderedDict\no"], ids=["NEWOBJ", "OBJ"]
)
def test_empty_ordered_dict_can_be_an_object(made: bytes) -> None:
    found = read_pickle(b"\x80\x02" + made + b".")
    assert type(found.value) is OrderedDict and not found.value and not found.refused
    assert read_pickle(
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85\x81."
    ).refused  # its arguments would be passed over


def test_invalid_torch_size_is_damage() -> None:
    def size(arguments: bytes) -> bytes:
        return b"\x80\x02ctorch\nSize\n" + arguments + b"R."

    assert read_pickle(size(b")")).value == ()
    assert read_pickle(size(b"K\x02K\x03\x86\x85")).value == (2, 3)
    for wrong in (
        b"K\x02\x85",
        b")K\x02\x86",
        b"X\x01\x00\x00\x00a\x85\x85",
        b"\x88\x85\x85",
        b"X\x01\x00\x00\x00a\x85",
    ):
        with raises(MalformedPickleError, "torch.Size"):
            read_pickle(size(wrong))


@pytest.mark.parametrize("legacy", [False, True])
def test_negated_view_is_refused(legacy: bool) -> None:
    """Its storage holds the values with the other sign, and the pickle says that they are to be turned."""
    content = simple_tree()
    weights = next(value for key, value in content.items() if isinstance(key, int))[0]
    name, tensor = next(iter(weights.items()))
    hnloader.load(io.BytesIO(saved(content, legacy=legacy)))
    weights[name] = torch._neg_view(tensor)
    assert_refused(saved(content, legacy=legacy), CorruptFileError, "negated or conjugated")


def test_long_byteorder_member_is_refused() -> None:
    without = rezipped(ZIP, lambda name, content: None if name.endswith("byteorder") else content)
    data = io.BytesIO(without)  # torch before 2.1 writes none
    with zipfile.ZipFile(data, "a") as archive:
        archive.writestr("archive/byteorder", b"big" + b" " * 40)
    assert_refused(data.getvalue(), CorruptFileError, "byteorder")


def test_expanded_tensor_is_not_called_damaged() -> None:
    data = saved(simple_tree(x=torch.ones(1).expand(40)))
    assert_refused(data, CorruptFileError, "repeats values")
