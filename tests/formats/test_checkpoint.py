"""Damaged files of torch.save raise only errors of the package, and sound ones equal torch.load."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hnloader
from hnloader import CorruptFileError, HypernetworkError, UnsupportedArchitectureError
from hnloader.formats import checkpoint, zip_archive
from hnloader.formats.checkpoint import LEGACY_MAGIC_NUMBER
from hnloader.formats.source import Source
from tests.support.builders import Recipe, make_sides, metadata, simple_tree, tree
from tests.support.damage import (
    HUGE,
    LEGACY,
    READERS,
    ZIP,
    assert_as_torch,
    assert_refused,
    flipped,
    flips,
    outcome,
    rezipped,
    saved,
    saved_safetensors,
    tensor_code,
    with_extra,
)
from tests.support.errors import raises
from tests.support.paths import GOLDENS


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


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.pt")), ids=lambda path: path.stem)
def test_goldens_equal_torch_load(path: Path) -> None:
    assert_as_torch(path.read_bytes())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_generated_files_equal_torch_load(dtype: torch.dtype, legacy: bool) -> None:
    recipe = Recipe((1, 1.5, 2, 1), "prelu", True, True, (0, 0.1, 0.2, 0))
    content = tree(make_sides(recipe, (8, 12), dtype=dtype), metadata(recipe, "2022-11"), dtype=dtype)
    assert_as_torch(saved(content, legacy=legacy))


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
