"""Learning rates over the steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnloader.training.learning_rate import parse_learning_rate


def test_pieces_hold_up_to_their_step() -> None:
    rate = parse_learning_rate("5e-5:100, 1e-5:200, 1e-6", 1000)
    assert [rate.at(step) for step in (1, 100, 101, 200, 201, 1000)] == [5e-5, 5e-5, 1e-5, 1e-5, 1e-6, 1e-6]


def test_pieces_include_previous_steps() -> None:
    text = "5e-5:100, 1e-5:1000, 1e-6"
    assert [parse_learning_rate(text, 2, 1000).at(step) for step in (1, 2)] == [1e-6, 1e-6]
    assert [parse_learning_rate(text, 600, 500).at(step) for step in (1, 500, 501, 600)] == [1e-5, 1e-5, 1e-6, 1e-6]
    assert parse_learning_rate(text, 20, 5000).at(20) == 1e-6
    assert parse_learning_rate("1e-3:10, 1e-4:-1", 50, 5).at(5) == 1e-3
    assert parse_learning_rate("1e-3:10, 1e-4:-1", 50, 5).at(6) == 1e-4


@pytest.mark.parametrize("scheduler", ["constant", "cosine", "linear"])
def test_a_single_rate_ignores_previous_steps(scheduler: str) -> None:
    alone, after = parse_learning_rate("1e-3", 40), parse_learning_rate("1e-3", 40, 1000)
    for step in (1, 7, 40):
        assert after.at(step, scheduler=scheduler, warmup_steps=5) == alone.at(
            step, scheduler=scheduler, warmup_steps=5
        )


def test_a_step_of_minus_one_means_the_end() -> None:
    assert parse_learning_rate("1e-3:10, 1e-4:-1", 50).at(50) == 1e-4


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.integers(2, 5000), st.sampled_from(["linear", "cosine"]))
def test_a_single_rate_decays_to_a_hundredth(number: float, steps: int, scheduler: str) -> None:
    rate = parse_learning_rate(str(number), steps)
    seen = [rate.at(step, scheduler=scheduler) for step in range(1, steps + 1, max(steps // 50, 1))]
    assert seen[0] == number
    assert seen == sorted(seen, reverse=True)
    assert rate.at(steps, scheduler=scheduler) == pytest.approx(number / 100)


def test_warmup_is_linear() -> None:
    rate = parse_learning_rate("1e-3", 100)
    assert [rate.at(step, warmup_steps=4) for step in (1, 2, 4, 50)] == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-3])
