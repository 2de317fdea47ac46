"""The benchmarks' own arithmetic, and that their output has a place in the documentation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.benchmarks._measure import Spread
from lab.benchmarks._report import put_between
from tests.support.paths import ROOT


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_a_spread_has_its_quartiles_around_its_median(values: list[float]) -> None:
    found = Spread.of(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_quartiles_are_linear_and_include_both_ends() -> None:
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4)
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


def test_output_replaces_what_stood_between_the_marks() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n"
    assert put_between(text, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb\n"
    assert put_between(put_between(text, "x", "1"), "x", "2") == put_between(text, "x", "2")
    with pytest.raises(ValueError, match="there is no"):
        put_between(text, "y", "new")


@pytest.mark.parametrize(("page", "name"), [("docs/dev/speed.md", "measured"), ("README.md", "speed")])
def test_the_documentation_has_the_marks(page: str, name: str) -> None:
    text = (ROOT / page).read_text()
    assert "only this" in put_between(text, name, "only this")
