"""Written files are read back with the same values and types, or the error names what cannot be kept."""

from __future__ import annotations

import datetime
import enum
import math
import struct
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import hnloader
from hnloader import Architecture, Hypernetwork, HypernetworkError, UnsupportedArchitectureError
from hnloader.conversion import convert, verify
from tests.support.builders import simple_tree, write
from tests.support.errors import raises

SUFFIXES = (".pt", ".safetensors")


def canonical(value: object) -> object:
    """Return a form that is equal for values of the same types and bits; independent of hnloader's own."""
    if isinstance(value, Tensor):
        return "tensor", value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist()
    kind = type(value)
    if isinstance(value, dict):
        return kind, [(canonical(key), canonical(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return kind, [canonical(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted((canonical(part) for part in value), key=repr)
    return kind, struct.pack(">d", value) if isinstance(value, float) else value


TEXT = st.text(st.characters(), max_size=6) | st.sampled_from(
    ["\ud83d\ude00", "\ude00\ud83d", "\ud83d", "\U0001f600", "\0", "e\u0301", "\u00e9", "\u2028", '"\\', ""]
)
NANS = st.sampled_from([0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000001, 0xFFFFFFFFFFFFFFFF])
FLOATS = st.floats() | NANS.map(lambda bits: struct.unpack(">d", bits.to_bytes(8, "big"))[0])
KEYS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | FLOATS | TEXT | st.binary(max_size=4)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
SHAPES = st.lists(st.integers(0, 3), max_size=3)


def tensor(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    bits = torch.randint(
        0, 256, (math.prod(shape) * 8,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    if dtype is torch.bool:
        return (bits[: math.prod(shape)] > 127).reshape(shape)
    return bits.view(dtype)[: math.prod(shape)].reshape(shape)


TENSORS = st.builds(tensor, st.sampled_from(DTYPES), SHAPES, st.integers(0, 99))
LEAVES = KEYS | st.integers(-(2**200), 2**200) | st.binary(max_size=4).map(bytearray) | TENSORS
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS | TENSORS, inner, max_size=3)
        | st.lists(st.tuples(KEYS | TENSORS, inner), max_size=3).map(OrderedDict)
        | st.sets(KEYS | TENSORS, max_size=3)
        | st.frozensets(KEYS | TENSORS, max_size=3)
    ),
    max_leaves=8,
)
METADATA = st.dictionaries(TEXT.filter(lambda key: "\ud83d\ude00" not in key), TREES, max_size=3)
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def with_metadata(metadata: dict[str, object]) -> Hypernetwork:
    return Hypernetwork.new((8,), Architecture(), name="new", metadata=metadata)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60, suppress_health_check=SLOW)
@given(metadata=METADATA)
def test_saved_values_are_read_back(suffix: str, metadata: dict[str, object], tmp_path: Path) -> None:
    made = with_metadata(metadata)
    hnloader.save(made, tmp_path / f"a{suffix}")
    assert canonical(hnloader.load(tmp_path / f"a{suffix}").metadata) == canonical(made.metadata)


@example(metadata={"": {math.nan: 1, -math.nan: 2, float("nan"): 3, 0.0: -0.0}})
@settings(max_examples=40, suppress_health_check=SLOW)
@given(metadata=METADATA)
def test_converting_there_and_back_changes_nothing(metadata: dict[str, object], tmp_path: Path) -> None:
    source, there, back = tmp_path / "a.pt", tmp_path / "a.safetensors", tmp_path / "b.pt"
    hnloader.save(with_metadata(metadata), source)
    for one, other in ((source, there), (there, back)):
        done = convert(one, other)
        assert done.lossless
        assert done.verified == ("tensors", "metadata", "outputs")
        verify(one, other)
        assert canonical(hnloader.load(other).metadata) == canonical(hnloader.load(one).metadata)


class Level(enum.IntEnum):
    HIGH = 1


class Words(str):
    __slots__ = ()


Pair = namedtuple("Pair", "a b")
CANNOT_BE_KEPT: dict[str, Callable[[], object]] = {
    "datetime.date": lambda: datetime.date(2026, 1, 1),
    "Level": lambda: Level.HIGH,
    "Words": lambda: Words("text"),
    "float64": lambda: np.float64(1.5),
    "int64": lambda: np.int64(1),
    "bool": lambda: np.bool_(True),
    "ndarray": lambda: np.zeros(2),
    "Pair": lambda: Pair(1, 2),
    "defaultdict": lambda: defaultdict(int, a=1),
    "Counter": lambda: Counter("a"),
    "complex": lambda: 1j,
    "range": lambda: range(3),
    "pathlib": lambda: Path("a"),
    "type": lambda: int,
    "dtype": lambda: torch.float32,
    "device": lambda: torch.device("cpu"),
    "complex64": lambda: torch.zeros(2, dtype=torch.complex64),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "meta device": lambda: torch.zeros(2, device="meta"),
    "ellipsis": lambda: ...,
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("within", ["value", "list", "tuple in a dict", "key"])
@pytest.mark.parametrize("kind", CANNOT_BE_KEPT)
def test_values_that_cannot_be_kept_are_named_and_nothing_is_written(
    kind: str, within: str, suffix: str, tmp_path: Path
) -> None:
    value = CANNOT_BE_KEPT[kind]()
    if within == "key" and getattr(value, "__hash__", None) is None:
        return
    if within == "key" and isinstance(value, (range, torch.Tensor)):
        return
    places: dict[str, Callable[[object], object]] = {
        "value": lambda it: it,
        "list": lambda it: [1, it],
        "tuple in a dict": lambda it: {"x": (it,)},
        "key": lambda it: {it: 1},
    }
    target = tmp_path / f"a{suffix}"
    target.write_bytes(b"old")
    with raises(UnsupportedArchitectureError, kind):
        hnloader.save(with_metadata({"odd": places[within](value)}), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def endless() -> object:
    value: list[object] = []
    value.append(value)
    return value


OVER_LIMITS: dict[str, Callable[[], object]] = {
    "2 ** 256": lambda: 2**256,
    "-(2 ** 2000)": lambda: -(2**2000),
    "10 ** 5000": lambda: 10**5000,
    "70 levels": lambda: nested(70),
    "2,000 levels": lambda: nested(2000),
    "endless": endless,
    "negative size": lambda: torch.Size((-1, 2)),
    "large key": lambda: {2**65: 1},
    "tuple as key": lambda: {(1,): 2},
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", OVER_LIMITS)
def test_values_above_the_limits_are_kept_or_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    value = OVER_LIMITS[kind]()
    target = tmp_path / f"a{suffix}"
    try:
        hnloader.save(with_metadata({"odd": value}), target)
    except HypernetworkError:
        assert list(tmp_path.iterdir()) == []
    else:
        assert canonical(hnloader.load(target).metadata["odd"]) == canonical(value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("key", [5, True, None, Words("a"), b"a", (1,)], ids=repr)
def test_metadata_keys_must_be_text(key: object, suffix: str, tmp_path: Path) -> None:
    with raises(UnsupportedArchitectureError, "key"):
        hnloader.save(with_metadata({key: 1}), tmp_path / f"a{suffix}")  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sizes_are_kept_or_refused(suffix: str, tmp_path: Path) -> None:
    value = {"sizes": [torch.Size((2, 3)), torch.Size(())]}
    try:
        hnloader.save(with_metadata(value), tmp_path / f"a{suffix}")
    except UnsupportedArchitectureError as error:
        assert "'sizes'" in str(error)
    else:
        assert canonical(hnloader.load(tmp_path / f"a{suffix}").metadata["sizes"]) == canonical(value["sizes"])


def test_ordered_dicts_are_kept(tmp_path: Path) -> None:
    content = OrderedDict([("b", 1), ("a", OrderedDict([(2, [OrderedDict()])]))])
    source = write(tmp_path / "a.pt", simple_tree(8, optional_info=content))
    convert(source, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert canonical(torch.load(tmp_path / "b.pt")["optional_info"]) == canonical(content)


@pytest.mark.parametrize("kinds", [(dict, dict), (OrderedDict, OrderedDict), (dict, OrderedDict)], ids=repr)
def test_state_dicts_keep_their_type_or_are_reported(kinds: tuple[type, type], tmp_path: Path) -> None:
    content = simple_tree(8)
    content[8] = tuple(kind(side) for kind, side in zip(kinds, content[8], strict=True))
    source = write(tmp_path / "a.pt", content)
    done = convert(source, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    same = kinds[0] is kinds[1]
    assert done.lossless == same
    assert any("OrderedDict" in note for note in done.notes) == (not same)
    found = torch.load(tmp_path / "b.pt")[8]
    assert tuple(map(type, found)) == (kinds if same else (dict, dict))


def test_lists_of_sides_become_tuples_and_are_reported(tmp_path: Path) -> None:
    content = simple_tree(8)
    content[8] = list(content[8])
    source = write(tmp_path / "a.pt", content)
    assert not convert(source, tmp_path / "a.safetensors").notes
    for one in (source, tmp_path / "a.safetensors"):
        done = convert(one, tmp_path / "b.pt")
        assert "tuples" in done.notes[0]
        assert type(torch.load(tmp_path / "b.pt")[8]) is tuple


def test_parameter_dict_is_reported(tmp_path: Path) -> None:
    odd = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.ones(2))})
    write(tmp_path / "a.pt", simple_tree(8, optional_info=[odd]))
    done = convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert not done.lossless
    assert "ParameterDict in 'optional_info'" in done.notes[0]
    assert type(hnloader.load(tmp_path / "a.safetensors").metadata["optional_info"][0]) is OrderedDict  # type: ignore[index]


def test_tensors_in_lists_and_as_keys_are_kept(tmp_path: Path) -> None:
    one, other = torch.arange(3.0), torch.tensor(-0.0)
    content = [one, (one, {"a": [other]}), {one: other}, {1: {one}}, {"set": {other}}]
    source = write(tmp_path / "a.pt", simple_tree(8, optional_info=content))
    convert(source, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert canonical(torch.load(tmp_path / "b.pt")["optional_info"]) == canonical(content)
    assert canonical(hnloader.load(tmp_path / "b.pt").metadata["optional_info"]) == canonical(content)


def test_negated_view_is_saved_by_its_values(tmp_path: Path) -> None:
    value = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    for suffix in SUFFIXES:
        hnloader.save(with_metadata({"odd": value}), tmp_path / f"a{suffix}")
        assert hnloader.load(tmp_path / f"a{suffix}").metadata["odd"].tolist() == [-2.0, 4.0]  # type: ignore[attr-defined]


def test_half_characters_are_kept_or_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.pt", simple_tree(8, name="ink\ud83d"))
    convert(source, tmp_path / "a.safetensors")
    assert hnloader.load(tmp_path / "a.safetensors").name == "ink\ud83d"
    with raises(UnsupportedArchitectureError, ".pt"):
        hnloader.save(with_metadata({"\ud83d\ude00": 1}), tmp_path / "b.safetensors")
    hnloader.save(with_metadata({"\ud83d\ude00": 1}), tmp_path / "b.pt")
    assert "\ud83d\ude00" in hnloader.load(tmp_path / "b.pt").metadata
