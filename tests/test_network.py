"""A loaded hypernetwork computes its sides in the right dtype and keeps copies only until `release`."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch

import hnloader
from tests.support.builders import Recipe, make_sides, metadata, relative_error, tree, write
from tests.support.errors import raises

RECIPE = Recipe(activation="relu")


@pytest.fixture
def half(tmp_path: Path) -> hnloader.Hypernetwork:
    sides = make_sides(RECIPE, (8,), dtype=torch.float16)
    return hnloader.load(write(tmp_path / "h.pt", tree(sides, metadata(RECIPE, "2022-11"), dtype=torch.float16)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_result_has_the_dtype_of_the_context(half: hnloader.Hypernetwork, dtype: torch.dtype) -> None:
    side = make_sides(RECIPE, (8,), dtype=torch.float16)[8][0]
    x = torch.randn(2, 3, 8).to(dtype)
    found = half(x)[0]
    assert found.dtype == dtype
    # Computed in float32 from the stored half precision, then cast, as the originals do.
    assert relative_error(found, side(x.float(), 1.0).to(dtype)) < 1e-6
    assert {p.dtype for p in half.parameters()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize(("width", "strength"), [(8, 1), (8, 0), (9, 1)])
def test_a_context_of_another_dtype_is_refused(
    half: hnloader.Hypernetwork, dtype: torch.dtype, width: int, strength: float
) -> None:
    with raises(TypeError, str(dtype)):
        half(torch.zeros(1, 2, width, dtype=dtype), strength)


def test_an_unknown_side_names_those_that_exist(half: hnloader.Hypernetwork) -> None:
    with raises(KeyError, "12345", "holds 8"):
        half.side(12345, "k")
    with raises(KeyError, "'q'", "'k'", "'v'"):
        half.side(8, "q")  # type: ignore[arg-type]


def test_strength_zero_and_unknown_widths_change_nothing(half: hnloader.Hypernetwork) -> None:
    for x, strength in ((torch.randn(1, 2, 8), 0), (torch.randn(1, 2, 9), 1)):
        assert all(result is x for result in half(x, strength))


def test_contexts_may_have_any_number_of_dimensions(half: hnloader.Hypernetwork) -> None:
    x = torch.randn(2, 3, 4, 8)
    assert torch.allclose(half(x)[1], half(x.reshape(-1, 8))[1].reshape(x.shape), atol=1e-6)


def test_release_and_dtype_changes_drop_copies(half: hnloader.Hypernetwork) -> None:
    x = torch.randn(1, 2, 8)
    before = half(x)[0]
    half.release()
    assert torch.equal(half(x)[0], before)
    with torch.no_grad():
        half.float().side(8, "k").linear[0].weight.zero_()  # type: ignore[operator]
    assert not torch.equal(half(x)[0], before)


def test_copies_and_pickles_compute_the_same(half: hnloader.Hypernetwork) -> None:
    x = torch.randn(1, 2, 8)
    expected = half(x)
    for other in (copy.deepcopy(half), pickle.loads(pickle.dumps(half))):
        assert all(torch.equal(one, two) for one, two in zip(other(x), expected, strict=True))
        assert other.metadata == half.metadata


def test_gradients_reach_parameters_of_another_dtype(half: hnloader.Hypernetwork) -> None:
    half.requires_grad_(True)
    half(torch.randn(1, 2, 8))[0].sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float16 for p in half.side(8, "k").parameters())


def test_a_new_hypernetwork_is_saved_and_read_back(tmp_path: Path) -> None:
    architecture = hnloader.Architecture((1, 1.5, 1), "relu", dropout=(0, 0, 0))
    made = hnloader.Hypernetwork.new(
        (8, 12), architecture, name="new", metadata=metadata(Recipe((1, 1.5, 1), "relu"), "2022-11")
    )
    for suffix in (".pt", ".safetensors"):
        hnloader.save(made, tmp_path / f"new{suffix}")
        found = hnloader.load(tmp_path / f"new{suffix}")
        assert found.widths == (8, 12)
        assert torch.equal(found(torch.ones(1, 1, 8))[0], made(torch.ones(1, 1, 8))[0])


def test_architecture_accepts_names_in_files() -> None:
    assert hnloader.Architecture((1, 2, 1), "linear") == hnloader.Architecture((1, 2, 1))
    assert hnloader.Architecture((1, 2, 1), "ReLU").activation == "relu"
    with raises(hnloader.UnsupportedArchitectureError, "'relu'"):
        hnloader.Architecture((1, 2, 1), "rellu")
