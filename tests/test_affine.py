"""A side without activation and norm as one affine map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hnloader
from hnloader.network import Architecture, Side, make_side

WIDTH = 24
RATIOS = st.lists(st.sampled_from([0.5, 1, 1.5, 2, 3]), max_size=3).map(lambda inner: (1, *inner, 1))


@settings(max_examples=60, deadline=None)
@given(ratios=RATIOS, residual=st.sampled_from([None, "interpolate", "linear"]), dropout=st.booleans())
def test_map_equals_the_side(ratios, residual, dropout):
    rates = (0, *(0.3 for _ in ratios[1:])) if dropout else ()
    side = make_side(Architecture(layer_structure=ratios, residual=residual, dropout=rates), WIDTH).double().eval()
    assert_map_of(side)


@pytest.mark.parametrize(
    "architecture",
    [Architecture(activation="relu"), Architecture(norm=True), Architecture(activation="relu", residual="linear")],
)
def test_nonlinear_side_has_no_map(architecture):
    assert make_side(architecture, WIDTH).affine_map() is None


@pytest.mark.parametrize("structure", ["[a, (b, 0.3)]", "{a: 1, b: 3}", "[{a, b}, ('[b, other]', 0.5)]"])
def test_a_composition_of_affine_members_is_one_map(structure, tmp_path):
    for name in ("a", "b"):
        save_member(tmp_path / f"{name}.pt", WIDTH)
    save_member(tmp_path / "other.pt", 2 * WIDTH)
    (tmp_path / "all.hns").write_text(structure)
    composition = hnloader.load(tmp_path / "all.hns")
    for side in ("k", "v"):
        assert_map_of(composition.side(WIDTH, side).double())


def test_a_composition_with_a_nonlinear_member_has_no_map(tmp_path):
    save_member(tmp_path / "a.pt", WIDTH)
    save_member(tmp_path / "b.pt", WIDTH, activation="relu")
    (tmp_path / "all.hns").write_text("[a, b]")
    assert hnloader.load(tmp_path / "all.hns").side(WIDTH, "k").affine_map() is None


def save_member(path: Path, width: int, activation: str | None = None) -> None:
    hnloader.save(hnloader.Hypernetwork.new((width,), Architecture(activation=activation)), path)


def assert_map_of(side: Side) -> None:
    found = side.affine_map()
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    assert found is not None
    with torch.no_grad():
        torch.testing.assert_close(found(x), side.residual(x), rtol=1e-11, atol=1e-11)
