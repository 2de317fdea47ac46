"""`inspect` tells what a file holds without reading its tensor data."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
from pathlib import Path

import pytest
import torch

import hnloader
from tests.support.builders import ERAS, OLD_NAMED_ERAS, Recipe, fit, make_sides, metadata, simple_tree, tree, write
from tests.support.errors import raises
from tests.support.paths import GOLDENS


class Counting(io.BytesIO):
    """Counts the bytes that are read from it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def large(width: int = 512) -> dict[object, object]:
    return tree(make_sides(Recipe(activation="relu"), (width,)), metadata(Recipe(activation="relu"), "2022-11"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_no_tensor_data_is_read(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", large(), legacy=kind == "legacy")
    if kind == "safetensors":
        hnloader.save(hnloader.load(path), tmp_path / "style.safetensors")
        path = tmp_path / "style.safetensors"
    file = Counting(path.read_bytes())
    assert hnloader.inspect(file).parameters == 2 * (512 * 1024 * 2 + 512 + 1024)
    assert path.stat().st_size > 8_000_000
    # 64 KiB at the end are searched for the end record of a second format.
    assert file.count < 200_000


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", large())
    hnloader.inspect(path)
    tracemalloc.start()
    hnloader.inspect(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_hashes_equal_those_of_the_webuis(tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", large())
    data = path.read_bytes()
    info = hnloader.inspect(path)
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert info.short_hash == info.sha256[:10]
    # The first webuis hashed 64 KiB that begin at 1 MiB, and showed 8 digits.
    assert info.legacy_hash == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]


def test_legacy_hash_of_a_small_file_is_that_of_nothing(tmp_path: Path) -> None:
    assert hnloader.inspect(write(tmp_path / "style.pt", simple_tree())).legacy_hash == "e3b0c442"


def test_hashes_of_open_files(tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", simple_tree())
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hnloader.inspect(io.BytesIO(path.read_bytes())).sha256 == expected
    with path.open("rb") as file:
        info = hnloader.inspect(file)
    assert info.sha256 == expected  # closed by now: read again from its path
    memory = io.BytesIO(path.read_bytes())
    info = hnloader.inspect(memory)
    memory.close()
    with raises(hnloader.HypernetworkError, "closed"):
        _ = info.sha256


def test_facts_come_from_the_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", simple_tree(x=torch.zeros(2, 3), note=("a", [torch.ones(1)])))
    info = hnloader.inspect(path)
    assert (info.name, info.step, info.checkpoint, info.checkpoint_name) == ("style", 1200, "7460a6fa", "model-v1-4")
    assert (info.format, info.container, info.size, info.path) == ("pt", "zip", path.stat().st_size, path)
    assert info.metadata["x"] == "tensor float32 [2, 3]"
    assert info.metadata["note"] == ("a", ["tensor float32 [1]"])


def test_missing_keys_are_none_and_the_name_is_the_stem(tmp_path: Path) -> None:
    info = hnloader.inspect(GOLDENS / "nai_linear1.pt")
    assert (info.name, info.step, info.checkpoint, info.checkpoint_name) == ("nai_linear1", None, None, None)


VARIANTS = {
    "nai": ("NovelAI or A1111 webui", "2022-10-07"),
    "2022-10-11": ("A1111 webui", "2022-10-11"),
    "2022-10-19": ("A1111 webui", "2022-10-19"),
    "2022-10-21": ("A1111 webui", "2022-10-21"),
    "2022-10-22": ("A1111 webui", "2022-10-22"),
    "2022-10-23": ("A1111 webui", "2022-10-22"),
    "2022-10-26": ("A1111 webui", "2022-10-26"),
    "2022-11": ("A1111 webui", "from 2022-11"),
    "monkeypatch": ("MonkeyPatch extension", "usual layers"),
}


@pytest.mark.parametrize("era", ERAS)
def test_program_and_variant(era: str, tmp_path: Path) -> None:
    recipe = fit(Recipe(activation="relu"), era)
    sides = make_sides(recipe, (8,), old_names=era in OLD_NAMED_ERAS)
    info = hnloader.inspect(write(tmp_path / "style.pt", tree(sides, metadata(recipe, era))))
    assert (info.program, info.variant) == VARIANTS[era]


@pytest.mark.parametrize(
    "path", sorted(GOLDENS.glob("*.pt")) + sorted(GOLDENS.glob("*.hns")), ids=lambda path: path.name
)
def test_json_of_every_golden(path: Path) -> None:
    described = json.loads(json.dumps(hnloader.inspect(path).to_dict()))
    assert described["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert described["widths"] and described["parameters"] > 0


def test_json_of_odd_metadata(tmp_path: Path) -> None:
    odd = {"a": float("nan"), "b": {1, 2}, "c": b"x", "d": (1, [None]), 3: float("inf")}
    info = hnloader.inspect(write(tmp_path / "style.pt", simple_tree(x=odd)))
    described = json.loads(json.dumps(info.to_dict(hashes=False), allow_nan=False))
    assert described["metadata"]["x"] == {"a": "nan", "b": [1, 2], "c": "b'x'", "d": [1, [None]], "3": "inf"}
    assert "sha256" not in described


def test_compositions_name_their_members() -> None:
    info = hnloader.inspect(GOLDENS / "hns_parallel.hns")
    assert info.format == "hns" and info.architecture is None
    assert info.members and all(member.parent == GOLDENS for member in info.members)
    assert info.parameters == sum(hnloader.inspect(member).parameters for member in info.members)
