"""Metadata of embeddings keep value and type, or are refused."""

from __future__ import annotations

import datetime
import json
import os
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnloader import CorruptFileError, HypernetworkError, UnsupportedArchitectureError
from hnloader.embeddings import Embedding, load_embedding, save_embedding

ENDINGS = (".pt", ".safetensors", ".png")
TEXT = st.text(st.characters(), max_size=5) | st.sampled_from(["\ud83d\ude00", "\ud83d", "3", "null", "[1]"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | TEXT | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(TEXT, inner, max_size=2)
        | st.dictionaries(TEXT, inner, max_size=2).map(OrderedDict)
    ),
    max_leaves=5,
)
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def canonical(value: object) -> object:
    kind = type(value)
    if isinstance(value, dict):
        return kind, [(canonical(key), canonical(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return kind, [canonical(part) for part in value]
    if isinstance(value, torch.Tensor):
        return kind, value.dtype, value.tolist()
    return kind, struct.pack(">d", value) if isinstance(value, float) else value


def embedding(metadata: dict[str, object]) -> Embedding:
    return Embedding(torch.ones(1, 768), name="word", step=5, metadata=metadata)


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=40, suppress_health_check=SLOW, deadline=None)
@given(metadata=st.dictionaries(TEXT, VALUES, max_size=3))
def test_metadata_round_trip_or_are_refused(ending: str, metadata: dict[str, object], tmp_path: Path) -> None:
    target = tmp_path / f"a{ending}"
    target.write_bytes(b"old")
    try:
        save_embedding(embedding(metadata), target)
    except UnsupportedArchitectureError:
        assert ending != ".pt"
        assert target.read_bytes() == b"old"
    else:
        found = load_embedding(target)
        assert (found.name, found.step) == ("word" if ending == ".png" else "a", 5)
        assert canonical(found.metadata) == canonical(metadata)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "value",
    [datetime.date(2026, 1, 1), np.float64(1), 1j, Path("a"), [object()], {"a": {1, "b"}}],
    ids=["date", "numpy", "complex", "path", "object", "set"],
)
def test_unsupported_values_are_refused(value: object, ending: str, tmp_path: Path) -> None:
    try:
        save_embedding(embedding({"odd": value}), tmp_path / f"a{ending}")
    except UnsupportedArchitectureError:
        assert list(tmp_path.iterdir()) == []
    else:
        found = load_embedding(tmp_path / f"a{ending}").metadata["odd"]
        assert found == value
        assert type(found) is type(value)


def test_tensors_in_lists_and_beside_the_vectors(tmp_path: Path) -> None:
    metadata: dict[str, object] = {"all": [torch.ones(2), {torch.zeros(1): (torch.ones(1),)}], "one": torch.ones(3)}
    save_embedding(embedding(metadata), tmp_path / "a.pt")
    found = load_embedding(tmp_path / "a.pt")
    one = metadata.pop("one")
    for again in (tmp_path / "b.pt", tmp_path / "c.pt"):
        assert canonical(found.metadata) == canonical(metadata)
        assert canonical(found.others) == canonical({"one": one})
        save_embedding(found, again)
        found = load_embedding(again)
    for ending in (".safetensors", ".png"):
        with pytest.raises(UnsupportedArchitectureError, match=r"all|Tensor"):
            save_embedding(found, tmp_path / f"c{ending}")


@pytest.mark.parametrize("key", ["name", "string_to_param", "emb_params", "hnloader.embedding", 5, None])
@pytest.mark.parametrize("ending", ENDINGS)
def test_reserved_keys_are_refused(key: object, ending: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="key"):
        save_embedding(embedding({key: 1}), tmp_path / f"a{ending}")  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_texts_changed_by_other_programs_win(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_embedding(embedding({"notes": "mine"}), path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"notes":"mine"', b'"notes":"ours"'))
    assert load_embedding(path).metadata == {"notes": "ours"}


def safetensors(path: Path, header: str, data: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
    return path


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    entry = '"emb_params": {"dtype": "F32", "shape": [1, 4], "data_offsets": [%d, %d]}'
    data = struct.pack("<8f", *range(8))
    twice = safetensors(tmp_path / "a.safetensors", f"{{{entry % (0, 16)}, {entry % (16, 32)}}}", data)
    meta = '"__metadata__": {"name": "a", "name": "b"}'
    texts = safetensors(tmp_path / "b.safetensors", f"{{{meta}, {entry % (0, 16)}}}", data[:16])
    for path, name in ((twice, "emb_params"), (texts, "name")):
        with pytest.raises(CorruptFileError, match=f"'{name}'"):
            load_embedding(path)


def test_keys_equal_as_text_are_refused(tmp_path: Path) -> None:
    torch.save({"string_to_param": {1: torch.zeros(1, 4), "1": torch.ones(1, 4)}}, tmp_path / "a.pt")
    with pytest.raises(HypernetworkError, match=r"a\.pt"):
        load_embedding(tmp_path / "a.pt")


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
def test_a_replaced_embedding_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_embedding(embedding({}), path)
    path.chmod(0o600)
    save_embedding(embedding({"a": 1}), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.dumps(load_embedding(path).metadata) == '{"a": 1}'


def test_existing_files_stay_without_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"old")
    with pytest.raises(HypernetworkError, match=r"a\.pt"):
        save_embedding(embedding({}), tmp_path / "a.pt", overwrite=False)
    assert (tmp_path / "a.pt").read_bytes() == b"old"
