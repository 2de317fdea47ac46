"""Damaged safetensors headers are refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
from hypothesis import given, settings

import hnloader
from hnloader import CorruptFileError, HypernetworkError, UnsupportedArchitectureError
from tests.support.damage import READERS, assert_refused, flipped, flips, saved_safetensors


def with_header(change: Callable[[dict], None], data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def about(header: dict, **changes: object) -> None:
    described = json.loads(header["__metadata__"]["hypernetwork"]) | changes
    header["__metadata__"]["hypernetwork"] = json.dumps(described)


def scoped(header: dict, *scopes: str) -> None:
    described = json.loads(header["__metadata__"]["hypernetwork"]) | {"layout": 2, "scopes": list(scopes)}
    described.pop("widths")
    header["__metadata__"]["hypernetwork"] = json.dumps(described)


def moved(header: dict, name: str, by: int) -> None:
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]


BAD_HEADERS: dict[str, tuple[Callable[[dict], object], type[HypernetworkError], str]] = {
    "no text metadata": (lambda h: h.update(__metadata__={"hypernetwork": 3}), CorruptFileError, "metadata"),
    "no JSON": (lambda h: h["__metadata__"].update(hypernetwork="{"), CorruptFileError, "JSON"),
    "no layout": (lambda h: about(h, layout=None), CorruptFileError, "layout"),
    "a newer layout": (lambda h: about(h, layout=3), UnsupportedArchitectureError, "layout 3"),
    "a layout without its key": (lambda h: about(h, layout=2), CorruptFileError, "scopes"),
    "both keys": (lambda h: about(h, scopes=["8"]), CorruptFileError, "scopes"),
    "scopes that are widths": (lambda h: scoped(h, "8"), CorruptFileError, "layout 1"),
    "a scope in another spelling": (lambda h: scoped(h, "8:0,1,2"), CorruptFileError, "8:0-2"),
    "a scope twice": (lambda h: scoped(h, "8:0", "8:0"), CorruptFileError, "twice"),
    "a scope without tensors": (lambda h: scoped(h, "8", "8:0"), UnsupportedArchitectureError, "8:0"),
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
