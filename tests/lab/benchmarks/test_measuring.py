"""What is computed from times, and that the ways take turns."""

from __future__ import annotations

import pytest
import torch

from lab.benchmarks._measure import Rounds, Sample, Spread, memory_of, take_turns


def rounds(**walls: list[float]) -> Rounds:
    return Rounds({way: [Sample(wall, wall) for wall in each] for way, each in walls.items()})


def test_a_slow_round_leaves_the_ratio_alone() -> None:
    taken = rounds(bare=[1, 10, 1], ours=[1.1, 11, 1.1])
    found = taken.ratio("ours", "bare")
    assert [found.median, found.low, found.high] == pytest.approx([1.1, 1.1, 1.1])
    assert taken.seconds("bare").median == 1


def test_the_share_is_what_is_added_of_what_the_other_adds() -> None:
    taken = rounds(bare=[10, 10, 10], hooks=[12, 12.2, 11.8], ours=[11, 11, 11])
    found = taken.share("ours", "hooks", "bare")
    assert found.median == pytest.approx(0.5)
    assert found.low <= found.median <= found.high
    assert found == taken.share("ours", "hooks", "bare")  # resampling is the same every time
    assert taken.share("ours", "bare", "bare").median == float("inf")


def test_every_way_needs_as_many_samples() -> None:
    with pytest.raises(ValueError, match="same number"):
        rounds(bare=[1, 2], ours=[1])
    with pytest.raises(ValueError, match="at least one"):
        rounds(bare=[], ours=[])


def test_the_ways_take_turns_there_and_back() -> None:
    calls: list[str] = []
    taken = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, seconds=0, least=2)
    assert "".join(calls) == "abc" + "abc" + "cba"  # the first three warm up
    assert taken.count == 2


def test_no_more_rounds_than_enough() -> None:
    assert take_turns({"a": lambda: None}, seconds=1e6, most=4).count == 4


def test_memory_counts_what_is_held_at_a_time_and_what_stays() -> None:
    stays: list[torch.Tensor] = []

    def action() -> None:
        first = torch.zeros(1000)
        second = torch.zeros(500)
        del first
        third = torch.zeros(250)
        stays.append(second)
        del third

    found = memory_of(action)
    assert (found.peak, found.kept) == (1500 * 4, 500 * 4)


def test_a_single_value_has_no_spread() -> None:
    assert Spread.of([2.0]).to_json() == [2.0, 2.0, 2.0]
