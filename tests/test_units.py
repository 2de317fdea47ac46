from __future__ import annotations

import pytest

from hnloader.units import count_text, counted, size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (87_124_456, "87.1 MB"), (999_999, "1.0 MB"), (5e12, "5000 GB")],
)
def test_sizes(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (640, "640"), (1_234_567, "1.2 M"), (678e9, "678 G")])
def test_counts(count: float, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1_200, "1,200 steps")])
def test_counts_of_things(count: int, text: str) -> None:
    assert counted(count, "step") == text
