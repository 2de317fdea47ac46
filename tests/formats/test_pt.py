"""Files of every era and option give the outputs of independently built modules, and survive saving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hnloader
from hnloader import UnsupportedArchitectureError
from tests.support.builders import (
    ACTIVATIONS,
    ERAS,
    IMPOSSIBLE_ACTIVATIONS,
    OLD_NAMED_ERAS,
    Recipe,
    Sides,
    derived_dropout,
    fit,
    make_sides,
    metadata,
    simple_tree,
    tree,
    worst_error,
    write,
)
from tests.support.errors import raises
from tests.support.examples import examples

TOLERANCE = 1e-6


def assert_architecture(found: hnloader.Architecture | None, recipe: Recipe, widths: tuple[int, ...]) -> None:
    assert found is not None
    for width in widths:
        assert found.sizes(width) == tuple(int(width * ratio) for ratio in recipe.structure)
    assert found.activation == (recipe.activation if recipe.acts else None)
    assert found.norm == recipe.norm
    assert found.residual == recipe.residual
    if recipe.acts and recipe.residual is None:
        assert found.activate_output == recipe.activate_output
    # The rate of the first position belongs to no layer. A dropout at the end leaves no trace in the tensors;
    # the files of 2022-10-22 have it without a key.
    end = -1 if recipe.dropout_before_norm else None
    assert tuple(found.dropout[1:end]) == tuple((recipe.dropout or (0,) * len(recipe.structure))[1:end])


def assert_loads(path: Path, sides: Sides, recipe: Recipe | None = None) -> hnloader.Hypernetwork:
    hypernetwork = hnloader.load(path)
    assert hypernetwork.widths == tuple(sides)
    assert worst_error(hypernetwork, sides) < TOLERANCE
    info = hnloader.inspect(path)
    assert info.architecture == hypernetwork.architecture
    assert info.widths == tuple(sides)
    assert info.parameters == sum(p.numel() for pair in sides.values() for side in pair for p in side.parameters())
    if recipe is not None:
        assert_architecture(hypernetwork.architecture, recipe, tuple(sides))
    return hypernetwork


# -- every activation that a file can name


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("activate_output", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_torch(activation: str, activate_output: bool, tmp_path: Path) -> None:
    recipe = Recipe((1, 2, 1.5, 1), activation, activate_output=activate_output)
    sides = make_sides(recipe, (6, 8))
    path = write(tmp_path / "style.pt", tree(sides, metadata(recipe, "2022-11")))
    assert_loads(path, sides, recipe)


@pytest.mark.parametrize("activation", IMPOSSIBLE_ACTIVATIONS)
def test_impossible_activations_are_named(activation: str, tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", simple_tree(activation_func=activation))
    with raises(UnsupportedArchitectureError, f"activation_func '{activation}'"):
        hnloader.load(path)


@pytest.mark.parametrize(("activation", "fact"), [("rleu", "'relu'"), (3, "3")])
def test_unknown_activations_are_named(activation: object, fact: str, tmp_path: Path) -> None:
    path = write(tmp_path / "style.pt", simple_tree(activation_func=activation))
    for read in (hnloader.load, hnloader.inspect):
        with raises(UnsupportedArchitectureError, fact):
            read(path)


# -- every era, with every option it had


RECIPES = {
    "plain": Recipe(),
    "wide": Recipe((1, 4, 2, 1), "relu"),
    "fractional": Recipe((1, 1.7, 0.3, 1), "tanh"),
    "one layer": Recipe((1, 1), "relu"),
    "norm": Recipe((1, 2, 1), "swish", norm=True),
    "norm, no activation": Recipe((1, 2, 2, 1), None, norm=True),
    "activated output, norm": Recipe((1, 2, 1), "elu", norm=True, activate_output=True),
    "dropout": Recipe((1, 2, 2, 1), "mish", dropout=(0, 0.3, 0, 0)),
    "dropout before the last layer": Recipe((1, 2, 2, 1), "relu", norm=True, dropout=(0, 0.3, 0.3, 0)),
    "dropout of own rates": Recipe((1, 3, 2, 1), "leakyrelu", True, True, (0, 0.1, 0.25, 0)),
    "prelu, norm, dropout": Recipe((1, 2, 2, 1), "prelu", True, True, (0, 0.5, 0.05, 0)),
    "residual": Recipe((1, 2, 1), "relu", residual="interpolate"),
    "residual, fractional": Recipe((1, 2.3, 0.7, 1), "tanh", residual="interpolate"),
    "residual, upsampled": Recipe((1, 1.5, 3, 1), "gelu", norm=True, residual="linear"),
    "residual, dropout to the end": Recipe((1, 2, 1), "prelu", True, False, (0.05, 0.1, 0.2), residual="linear"),
    "residual, linear": Recipe((1, 2, 1), None, residual="interpolate"),
}


@pytest.mark.parametrize("option", RECIPES)
@pytest.mark.parametrize("era", ERAS)
def test_every_option_of_every_era(era: str, option: str, tmp_path: Path) -> None:
    recipe = fit(RECIPES[option], era)
    sides = make_sides(recipe, (10, 16), old_names=era in OLD_NAMED_ERAS)
    path = write(tmp_path / "style.pt", tree(sides, metadata(recipe, era)))
    hypernetwork = assert_loads(path, sides, recipe)
    assert hypernetwork.metadata == metadata(recipe, era)
    assert hypernetwork.name == "style"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("pair", [tuple, list])
def test_every_container_dtype_and_pair(legacy: bool, dtype: torch.dtype, pair: type, tmp_path: Path) -> None:
    recipe = Recipe((1, 2, 1), "relu", norm=True)
    sides = make_sides(recipe, (8, 12), dtype=dtype)
    content = tree(sides, metadata(recipe, "2022-11"), dtype=dtype, pair=pair)
    path = write(tmp_path / "style.pt", content, legacy=legacy)
    assert_loads(path, sides, recipe)
    info = hnloader.inspect(path)
    assert (info.container, info.dtypes) == ("legacy" if legacy else "zip", (str(dtype).removeprefix("torch."),))
    assert info.program == ("kohya trainer" if pair is list else "A1111 webui")


@pytest.mark.parametrize("last", [False, True])
def test_use_dropout_alone_means_the_rates_of_its_era(last: bool, tmp_path: Path) -> None:
    recipe = Recipe((1, 2, 2, 2, 1), "relu", norm=True, dropout=derived_dropout(5, last=last))
    sides = make_sides(recipe, (8,))
    keys = metadata(recipe, "2022-11")
    for missing in (
        ["dropout_structure"],
        ["dropout_structure", "last_layer_dropout"],
        ["dropout_structure", "use_dropout"],
    ):
        left = {key: value for key, value in keys.items() if key not in missing}
        assert_loads(write(tmp_path / "style.pt", tree(sides, left)), sides, recipe)


@pytest.mark.parametrize("missing", [key for key in ERAS["monkeypatch"] if key != "activation_func"])
@pytest.mark.parametrize("option", [name for name, recipe in RECIPES.items() if recipe.acts])
def test_missing_keys_are_derived_from_the_shapes(option: str, missing: str, tmp_path: Path) -> None:
    recipe = RECIPES[option]
    if missing == "activate_output" and not recipe.norm:
        recipe = replace(recipe, activate_output=True)  # what its absence means where no module shows it
    if missing == "dropout_structure" and recipe.dropout is not None:
        count = len(recipe.structure)
        recipe = replace(recipe, dropout=derived_dropout(count, last=recipe.rate(count - 2) > 0))
    sides = make_sides(recipe, (10, 16))
    keys = {key: value for key, value in metadata(recipe, "monkeypatch").items() if key != missing}
    hypernetwork = assert_loads(write(tmp_path / "style.pt", tree(sides, keys)), sides)
    assert hypernetwork.metadata == keys


def test_stem_is_the_default_name(tmp_path: Path) -> None:
    path = write(tmp_path / "my style.pt", simple_tree(name=...))
    assert hnloader.load(path).name == hnloader.inspect(path).name == "my style"


def test_files_of_different_widths_are_independent(tmp_path: Path) -> None:
    sides = make_sides(Recipe(activation="relu"), (24, 7))
    hypernetwork = assert_loads(
        write(tmp_path / "s.pt", tree(sides, metadata(Recipe(activation="relu"), "2022-11"))), sides
    )
    context = torch.randn(2, 3, 9)
    assert hypernetwork(context)[0] is context


# -- any architecture of any era


ratios = st.integers(1, 40).map(lambda n: n / 10) | st.integers(1, 4)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    structure = (1, *draw(st.lists(ratios, max_size=3)), 1)
    rates = st.sampled_from([0, 0, 0.1, 0.3])
    residual = draw(st.sampled_from([None, None, "interpolate", "linear"]))
    inner = [draw(rates) for _ in structure[1:-1]]
    last = draw(rates) if residual is not None else 0
    return Recipe(
        structure=structure,
        activation=draw(st.sampled_from([None, "linear", "relu", "prelu", "swish", "softsign", "gelu"])),
        norm=draw(st.booleans()),
        activate_output=draw(st.booleans()),
        dropout=(0, *inner, last) if any((*inner, last)) else None,
        residual=residual,
    )


widths_of_files = st.lists(st.integers(10, 33), min_size=1, max_size=3, unique=True).map(tuple)
values = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20)
values |= st.binary(max_size=8)
extra_metadata = st.dictionaries(
    st.text(min_size=1, max_size=12).map(lambda key: f"x_{key}"),
    st.recursive(
        values,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=5) | st.integers(-9, 9), inner, max_size=3)
            | st.sets(st.integers(-9, 9), max_size=3)
            | st.frozensets(st.text(max_size=3), max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=3,
)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(few, max_examples=examples(150, 600))


def assert_same_types(found: object, expected: object) -> None:
    assert type(found) is type(expected)
    assert found == expected
    if isinstance(expected, dict):
        assert list(found) == list(expected)  # type: ignore[call-overload]
        for key, value in expected.items():
            assert_same_types(found[key], value)  # type: ignore[index]
    elif isinstance(expected, (list, tuple)):
        for one, other in zip(found, expected, strict=True):  # type: ignore[call-overload]
            assert_same_types(one, other)


def check_any_file(
    tmp_path: Path,
    recipe: Recipe,
    era: str,
    widths: tuple[int, ...],
    extra: dict[str, object],
    dtype: torch.dtype,
    legacy: bool,
) -> None:
    recipe = fit(recipe, era)
    sides = make_sides(recipe, widths, old_names=era in OLD_NAMED_ERAS, dtype=dtype)
    keys = {**metadata(recipe, era), **extra}
    path = write(tmp_path / "style.pt", tree(sides, keys, dtype=dtype), legacy=legacy)
    first = assert_loads(path, sides, recipe)
    assert_same_types(first.metadata, keys)
    for suffix in (".pt", ".safetensors"):
        saved = tmp_path / f"saved{suffix}"
        hnloader.save(first, saved)
        again = hnloader.load(saved)
        assert_same_types(again.metadata, keys)
        assert (again.architecture, again.widths) == (first.architecture, first.widths)
        before, after = first.state_dict(), again.state_dict()
        assert list(before) == list(after)
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype
            assert torch.equal(tensor, after[name])
        x = torch.randn(1, 4, widths[0])
        with torch.no_grad():
            assert all(torch.equal(one, other) for one, other in zip(first(x, 0.6), again(x, 0.6), strict=True))
    # torch reads what was written as the original; weights_only would refuse some of the extra metadata.
    plain = torch.load(tmp_path / "saved.pt", weights_only=False)
    original = torch.load(path, weights_only=False)
    assert [list(side) for side in plain[widths[0]]] == [list(side) for side in original[widths[0]]]
    assert list(plain) == list(original)


random_files = {
    "recipe": recipes(),
    "era": st.sampled_from(list(ERAS)),
    "widths": widths_of_files,
    "extra": extra_metadata,
    "dtype": st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    "legacy": st.booleans(),
}


@few
@given(**random_files)
def test_random_files_load_and_survive_saving(tmp_path: Path, **drawn: object) -> None:
    check_any_file(tmp_path, **drawn)  # type: ignore[arg-type]


@pytest.mark.slow
@many
@given(**random_files)
def test_many_random_files_load_and_survive_saving(tmp_path: Path, **drawn: object) -> None:
    check_any_file(tmp_path, **drawn)  # type: ignore[arg-type]
