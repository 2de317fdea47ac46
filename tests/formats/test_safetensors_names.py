"""Each name has one spelling. Other spellings and duplicates are refused by name."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hnloader
from hnloader import HypernetworkError
from hnloader.texts import shown
from tests.support.builders import simple_tree, write

Header = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Header, bytes]:
    folder = tmp_path_factory.mktemp("good")
    hnloader.save(hnloader.load(write(folder / "a.pt", simple_tree(8))), folder / "a.safetensors")
    data = (folder / "a.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def written(path: Path, text: str, data: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + data)
    return path


def refusal(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(HypernetworkError) as caught:
        hnloader.load(path)
    with pytest.raises(HypernetworkError):
        hnloader.inspect(path)
    assert path.read_bytes() == before
    return str(caught.value)


SPELLINGS = [
    "08.k.linear.0.bias",
    "008.k.linear.0.bias",
    "+8.k.linear.0.bias",
    " 8.k.linear.0.bias",
    "8 .k.linear.0.bias",
    "8_.k.linear.0.bias",
    "\u0668.k.linear.0.bias",
    "\uff18.k.linear.0.bias",
    "\u00b2.k.linear.0.bias",
    "8.K.linear.0.bias",
    "8.\uff4b.linear.0.bias",
    "8.k.linear.00.bias",
    "8.k.linear.\u0660.bias",
    "8.k.linear.\u00b2.bias",
    "8.k.linear.0.bias ",
    "8.k.linear.0.Bias",
    "8.k.linear.0.bias\n",
    "8.k.linear.0.bias\0",
    "8.k.linear1.bias",
    "8.k.linear.99999.bias",
    "8.k.linear." + "9" * 5000 + ".bias",
    "16.k.linear.0.bias",
    "0.k.linear.0.bias",
    "metadata.0",
    "metadata.00",
]


@pytest.mark.parametrize("instead", [False, True])
@pytest.mark.parametrize("name", SPELLINGS, ids=lambda name: ascii(name)[:30])
def test_other_spellings_of_tensor_names_are_refused(
    name: str, instead: bool, good: tuple[Header, bytes], tmp_path: Path
) -> None:
    header, data = copy.deepcopy(good[0]), good[1]
    entry = header["8.k.linear.0.bias"]
    if instead:
        del header["8.k.linear.0.bias"]
        header[name] = entry
    else:
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        header[name] = {**entry, "data_offsets": [len(data), len(data) + size]}
        data += bytes(size)
    message = refusal(written(tmp_path / "a.safetensors", json.dumps(header), data))
    named = (name, name.partition(".k.")[2] or name, "'linear.0.bias' twice", "'linear1.bias'")
    assert any(repr(each[:60])[1:-1] in message for each in named[:2]) or any(each in message for each in named[2:])


def test_duplicate_name_in_the_header_is_refused(good: tuple[Header, bytes], tmp_path: Path) -> None:
    header, data = good
    entry = json.dumps(header["8.k.linear.0.bias"])
    text = json.dumps(header)[:-1] + f', "8.k.linear.0.bias": {entry}}}'
    assert "'8.k.linear.0.bias'" in refusal(written(tmp_path / "a.safetensors", text, data))


ABOUT: dict[str, Callable[[str], str]] = {
    "'widths'": lambda text: text.replace('"widths"', '"widths": [16], "widths"'),
    "'step'": lambda text: text.replace('"step"', '"step": 1, "step"'),
    "names 8 twice": lambda text: text.replace('"widths": [8]', '"widths": [8, 8]'),
    "layout": lambda text: text.replace('"layout": 1', '"layout": true'),
    "key": lambda text: text.replace('"step"', '"more": {"dict": [["a", 1], ["a", 2]]}, "step"'),
    "item": lambda text: text.replace('"step"', '"more": {"set": [1, 1.0]}, "step"'),
    "occurs twice": lambda text: text.replace('"step"', '"more": {"OrderedDict": [[1, 1], [true, 2]]}, "step"'),
    "NaN is outside": lambda text: text.replace('"step"', '"more": NaN, "step"'),
    "1e999 is outside": lambda text: text.replace('"step"', '"more": 1e999, "step"'),
    "'1_0' is not one of": lambda text: text.replace('"step"', '"more": {"float": "1_0"}, "step"'),
    "3ff0000000000000": lambda text: text.replace('"step"', '"more": {"nan": "3ff0000000000000"}, "step"'),
}


@pytest.mark.parametrize(
    "name", ["metadata.0", "metadata.00", "metadata.\u0660", "metadata. 0", "metadata."], ids=ascii
)
def test_other_spellings_of_metadata_tensors_are_refused(name: str, good: tuple[Header, bytes], tmp_path: Path) -> None:
    header, data = copy.deepcopy(good[0]), good[1]
    header[name] = {"dtype": "U8", "shape": [1], "data_offsets": [len(data), len(data) + 1]}
    about = header["__metadata__"]["hypernetwork"]
    more = f'"more": {{"tensor": {json.dumps(name)}}}, "step"'
    header["__metadata__"]["hypernetwork"] = about.replace('"step"', more)
    path = written(tmp_path / "a.safetensors", json.dumps(header), data + b"\x05")
    if name == "metadata.0":
        assert torch.equal(hnloader.load(path).metadata["more"], torch.tensor([5], dtype=torch.uint8))  # type: ignore[arg-type]
    else:
        assert shown(name) in refusal(path)


@pytest.mark.parametrize("fact", ABOUT)
def test_ambiguous_metadata_are_refused(fact: str, good: tuple[Header, bytes], tmp_path: Path) -> None:
    header, data = copy.deepcopy(good[0]), good[1]
    before = header["__metadata__"]["hypernetwork"]
    header["__metadata__"]["hypernetwork"] = ABOUT[fact](before)
    assert header["__metadata__"]["hypernetwork"] != before
    assert fact in refusal(written(tmp_path / "a.safetensors", json.dumps(header), data))


@pytest.mark.parametrize(
    "name", ["linear.00.weight", "linear.\u0660.weight", "linear.+0.weight", " linear.0.weight", "Linear.0.weight"]
)
@pytest.mark.parametrize("instead", [False, True])
def test_other_spellings_in_a_state_dict_are_refused(name: str, instead: bool, tmp_path: Path) -> None:
    content = simple_tree(8)
    side = content[8][0]
    side[name] = side.pop("linear.0.weight") if instead else torch.zeros_like(side["linear.0.weight"])
    assert repr(name) in refusal(write(tmp_path / "a.pt", content))


@pytest.mark.parametrize("where", ["one side", "two sides"])
def test_mixed_old_and_new_names_are_refused(where: str, tmp_path: Path) -> None:
    content = simple_tree(8)
    sides = content[8] if where == "two sides" else (content[8][0],)
    for name in [name for name in sides[0] if where == "two sides" or name.startswith("linear.0.")]:
        old = name.replace("linear.0.", "linear1.").replace("linear.1.", "linear2.")
        sides[0][old] = sides[0].pop(name)
    message = refusal(write(tmp_path / "a.pt", content))
    assert "old names" in message
    assert "linear1." in message
