"""Metadata that contradict the tensors, and impossible tensors, are refused with the key and the shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hnloader
from hnloader import CorruptFileError, HypernetworkError, UnsupportedArchitectureError
from tests.support.builders import Recipe, make_sides, metadata, simple_tree, tree, write
from tests.support.errors import raises

READERS = {"load": hnloader.load, "inspect": hnloader.inspect}

PLAIN = Recipe((1, 2, 2, 1), "relu")
FULL = Recipe((1, 2, 2, 1), "relu", True, True, (0, 0.3, 0.3, 0))
RESIDUAL = Recipe((1, 2, 1), "relu", residual="interpolate")
UPSAMPLED = Recipe((1, 2, 1), "relu", residual="linear")

# (how the tensors are built, the key, a value that they contradict)
CONTRADICTIONS = [
    (PLAIN, "layer_structure", [1, 3, 2, 1]),
    (PLAIN, "layer_structure", [1, 2, 1]),
    (PLAIN, "layer_structure", [1, 1]),
    (PLAIN, "layer_structure", [1, 2, 2, 2, 1]),
    (PLAIN, "activation_func", "linear"),
    (PLAIN, "activation_func", None),
    (PLAIN, "activation_func", "prelu"),
    (PLAIN, "is_layer_norm", True),
    (PLAIN, "dropout_structure", [0, 0.3, 0, 0]),
    (PLAIN, "dropout_structure", [0, 0, 0.3, 0]),
    (PLAIN, "skip_connection", True),
    (FULL, "layer_structure", [1, 2, 3, 1]),
    (FULL, "activation_func", "linear"),
    (FULL, "is_layer_norm", False),
    (FULL, "activate_output", False),
    (FULL, "dropout_structure", [0, 0, 0, 0]),
    (FULL, "dropout_structure", [0, 0.3, 0, 0]),
    (RESIDUAL, "skip_connection", False),
    (RESIDUAL, "upsample_linear", "Linear"),
    (RESIDUAL, "is_layer_norm", True),
    (UPSAMPLED, "upsample_linear", None),
    (UPSAMPLED, "activation_func", "prelu"),
    (UPSAMPLED, "skip_connection", False),
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("recipe", "key", "value"), CONTRADICTIONS)
def test_contradicting_key_is_named_with_a_shape(
    recipe: Recipe, key: str, value: object, reader: str, tmp_path: Path
) -> None:
    keys = {**metadata(recipe, "monkeypatch"), key: value}
    path = write(tmp_path / "style.pt", tree(make_sides(recipe, (8, 12)), keys))
    with pytest.raises(UnsupportedArchitectureError) as caught:
        READERS[reader](path)
    message = str(caught.value)
    assert f"key {key} is {value!r}" in message
    assert "linear.0." in message and "[16, 8]" in message  # a tensor and its shape
    assert str(path) in message


@pytest.mark.parametrize(("key", "value"), [("use_dropout", True), ("last_layer_dropout", True)])
def test_contradicting_old_dropout_keys_are_named(key: str, value: object, tmp_path: Path) -> None:
    recipe = Recipe((1, 2, 2, 1), "relu", dropout=(0, 0.3, 0, 0) if key == "last_layer_dropout" else None)
    keys = {**metadata(recipe, "2022-10-26"), key: value}
    path = write(tmp_path / "style.pt", tree(make_sides(recipe, (8,)), keys))
    with raises(UnsupportedArchitectureError, key, "[16, 8]"):
        hnloader.load(path)


WRONG_VALUES = [
    ("layer_structure", "1,2,1"),
    ("layer_structure", []),
    ("layer_structure", [1]),
    ("layer_structure", [2, 1]),
    ("layer_structure", [1, 2]),
    ("layer_structure", [1, -2, 1]),
    ("layer_structure", [1, 0, 1]),
    ("layer_structure", [1, float("nan"), 1]),
    ("layer_structure", [1, float("inf"), 1]),
    ("layer_structure", [1, 1e30, 1]),
    ("layer_structure", [1, 10**30, 1]),
    ("layer_structure", [1, True, 1]),
    ("layer_structure", [1, None, 1]),
    ("layer_structure", [1, *[2] * 1000, 1]),
    ("layer_structure", {"a": 1}),
    ("layer_structure", torch.ones(3)),
    ("activation_func", ["relu"]),
    ("activation_func", torch.ones(3)),
    ("is_layer_norm", "yes"),
    ("is_layer_norm", [True]),
    ("is_layer_norm", torch.ones(3)),
    ("activate_output", "no"),
    ("dropout_structure", [0, 0.3]),
    ("dropout_structure", [0, 1, 0]),
    ("dropout_structure", [0, -0.1, 0]),
    ("dropout_structure", [0, "0.3", 0]),
    ("dropout_structure", 0.3),
    ("skip_connection", "maybe"),
]


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES, ids=lambda value: str(value)[:20])
def test_value_of_wrong_type_is_named(key: str, value: object, tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", simple_tree(**{key: value}))
    for read in READERS.values():
        with raises(UnsupportedArchitectureError, key) as caught:
            read(path)
        assert len(str(caught.value)) < 2000


def changed(change: object, **keys: object) -> dict[object, object]:
    content = simple_tree(**keys)
    change(content)  # type: ignore[operator]
    return content


def rename(state: dict, old: str, new: str) -> None:
    state[new] = state.pop(old)


LAYER = "linear.0.weight"
BROKEN_SIDES = {
    "a missing tensor": (lambda t: t[8][0].pop("linear.0.bias"), "linear.0.bias"),
    "no weights": (lambda t: [t[8][0].pop(n) for n in ("linear.0.weight", "linear.2.weight")], "linear.0.weight"),
    "an empty side": (lambda t: t[8][1].clear(), "v side of width 8"),
    "a tensor too many": (lambda t: t[8][0].update({"linear.4.weight": torch.ones(8, 8)}), "linear.4.weight"),
    "an odd name": (lambda t: rename(t[8][0], "linear.0.bias", "layers.0.bias"), "'layers.0.bias'"),
    "a name with a huge index": (lambda t: rename(t[8][0], LAYER, "linear.99999999999.weight"), "linear.99999"),
    "a wrong input": (lambda t: t[8][0].update({LAYER: torch.ones(16, 9)}), "[16, 9]", "[16, 8]"),
    "a wrong output": (lambda t: t[8][1].update({"linear.2.weight": torch.ones(9, 16)}), "9 values", "8"),
    "a wrong bias": (lambda t: t[8][0].update({"linear.0.bias": torch.ones(15)}), "linear.0.bias", "[15]"),
    "three dimensions": (lambda t: t[8][0].update({LAYER: torch.ones(16, 8, 1)}), "[16, 8, 1]"),
    "a scalar": (lambda t: t[8][0].update({"linear.0.bias": torch.tensor(1.0)}), "linear.0.bias", "[]"),
    "integers": (lambda t: t[8][0].update({LAYER: torch.ones(16, 8, dtype=torch.int64)}), "int64"),
    "bools": (lambda t: t[8][0].update({"linear.0.bias": torch.ones(16, dtype=torch.bool)}), "bool"),
    "no tensor": (lambda t: t[8][0].update({LAYER: [1.0]}), "linear.0.weight"),
    "a number as a name": (lambda t: t[8][0].update({3: torch.ones(1)}), "'3'"),
    "both kinds of names": (
        lambda t: t[8][0].update({"linear1.weight": torch.ones(16, 8)}),
        "linear.0.weight",
    ),
    "one side": (lambda t: t.update({8: (t[8][0],)}), "8", "a tuple of 1"),
    "three sides": (lambda t: t.update({8: (*t[8], t[8][0])}), "a tuple of 3"),
    "a side that is none": (lambda t: t.update({8: (t[8][0], None)}), "a tuple of 2"),
    "a tensor as the pair": (lambda t: t.update({8: torch.ones(2)}), "key 8"),
    "a dict as the pair": (lambda t: t.update({8: {"k": t[8][0], "v": t[8][1]}}), "a dict of 2"),
    "the pair of another width": (lambda t: t.update({9: t[8]}), "width 9"),
    "a width of zero": (lambda t: t.update({0: t[8]}), "0 is"),
    "a negative width": (lambda t: t.update({-8: t[8]}), "-8 is"),
    "a huge width": (lambda t: t.update({1 << 60: t[8]}), 1 << 60),
    "True as a width": (lambda t: t.update({True: t[8]}), "key 'True'"),
    "a decimal as a width": (lambda t: t.update({8.5: t[8]}), "key '8.5'"),
    "None as a key": (lambda t: t.update({None: 1}), "key 'None'"),
    "bytes as a key": (lambda t: t.update({b"x": 1}), "key \"b'x'\""),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BROKEN_SIDES)
def test_impossible_sides_are_refused(name: str, reader: str, tmp_path: Path) -> None:
    change, *facts = BROKEN_SIDES[name]
    path = write(tmp_path / "style.pt", changed(change))
    with raises(UnsupportedArchitectureError, path, *facts):
        READERS[reader](path)


@pytest.mark.parametrize("recipe", [Recipe((1, 2, 2, 1), "relu", norm=True), Recipe((1, 2, 1), "relu")])
def test_unnamed_modules_without_tensors_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    """They may be activations or dropouts: taking one for the other would give wrong images in silence."""
    content = tree(make_sides(recipe, (8,)), {})
    with raises(UnsupportedArchitectureError, "activation_func"):
        hnloader.load(write(tmp_path / "style.pt", content))


def test_sides_of_different_depth_are_refused(tmp_path: Path) -> None:
    shallow, deep = make_sides(Recipe(), (8,)), make_sides(Recipe((1, 2, 2, 1)), (12,))
    with raises(UnsupportedArchitectureError, "2 at 8", "3 at 12"):
        hnloader.load(write(tmp_path / "style.pt", tree({**shallow, **deep}, {})))


def test_sizes_without_common_ratio_are_refused(tmp_path: Path) -> None:
    narrow, wide = make_sides(Recipe((1, 2, 1)), (8,)), make_sides(Recipe((1, 3, 1)), (12,))
    with raises(UnsupportedArchitectureError, "16 at width 8", "36 at width 12"):
        hnloader.load(write(tmp_path / "style.pt", tree({**narrow, **wide}, {})))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    content = simple_tree()
    content[8][1]["linear.2.bias"] = torch.tensor([0, value, 1, value, 0, 0, 0, 0], dtype=dtype)  # type: ignore[index]
    path = write(tmp_path / "style.pt", content)
    with raises(CorruptFileError, path, "linear.2.bias of the v side of width 8", "2 of 8 values"):
        hnloader.load(path)
    assert hnloader.inspect(path).widths == (8,)  # only the data show it


def test_large_values_with_overflowing_sum_load(tmp_path: Path) -> None:
    content = simple_tree()
    content[8][0]["linear.0.bias"] = torch.full((16,), 60_000, dtype=torch.float16)  # type: ignore[index]
    assert hnloader.load(write(tmp_path / "style.pt", content)).widths == (8,)


def test_unchanged_file_loads(tmp_path: Path) -> None:
    """Guards the tests above: what they change is what makes the difference."""
    assert hnloader.load(write(tmp_path / "style.pt", changed(lambda content: None))).widths == (8,)
    assert issubclass(UnsupportedArchitectureError, HypernetworkError)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(("key", "width"), [(8, 4), (4, 8), (13, 0)])
def test_tensors_of_another_width_than_the_key_are_refused(
    key: int, width: int, reader: Callable[[Path], object], tmp_path: Path
) -> None:
    side = {"linear.0.weight": torch.zeros(2 * width, width), "linear.0.bias": torch.zeros(2 * width)}
    side |= {"linear.1.weight": torch.zeros(width, 2 * width), "linear.1.bias": torch.zeros(width)}
    path = write(tmp_path / "style.pt", {key: (side, dict(side))})
    with raises(UnsupportedArchitectureError, f"{key} values"):
        reader(path)


def test_layer_without_values_is_refused(tmp_path: Path) -> None:
    side = {"linear.0.weight": torch.zeros(0, 4), "linear.0.bias": torch.zeros(0)}
    side |= {"linear.1.weight": torch.zeros(4, 0), "linear.1.bias": torch.zeros(4)}
    with raises(UnsupportedArchitectureError, "linear.0.weight"):
        hnloader.load(write(tmp_path / "style.pt", {4: (side, dict(side))}))
