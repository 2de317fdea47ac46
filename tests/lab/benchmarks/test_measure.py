from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.benchmarks._measure import Rounds, Sample, Spread, memory_of, take_turns


def rounds(**walls: list[float]) -> Rounds:
    return Rounds({way: [Sample(wall, wall) for wall in each] for way, each in walls.items()})


def test_slow_round_does_not_change_the_ratio() -> None:
    taken = rounds(bare=[1, 10, 1], ours=[1.1, 11, 1.1])
    found = taken.ratio("ours", "bare")
    assert [found.median, found.low, found.high] == pytest.approx([1.1, 1.1, 1.1])
    assert taken.seconds("bare").median == 1


def test_share_of_the_added_time() -> None:
    taken = rounds(bare=[10, 10, 10], hooks=[12, 12.2, 11.8], ours=[11, 11, 11])
    found = taken.share("ours", "hooks", "bare")
    assert found.median == pytest.approx(0.5)
    assert found.low <= found.median <= found.high
    assert found == taken.share("ours", "hooks", "bare")  # the bootstrap is deterministic
    assert taken.share("ours", "bare", "bare").median == float("inf")


def test_every_way_needs_the_same_number_of_samples() -> None:
    with pytest.raises(ValueError):
        rounds(bare=[1, 2], ours=[1])
    with pytest.raises(ValueError):
        rounds(bare=[], ours=[])


def test_every_second_round_has_the_reverse_order() -> None:
    calls: list[str] = []
    taken = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, seconds=0, least=4)
    assert "".join(calls[:3]) == "abc"  # warm-up
    rounds = [calls[place : place + 3] for place in range(3, 15, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert rounds[1] == rounds[0][::-1]
    assert rounds[3] == rounds[2][::-1]
    assert taken.count == 4


def test_sample_is_the_median_of_a_burst() -> None:
    calls: list[str] = []
    taken = take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, seconds=0, most=1, burst=3)
    assert "".join(calls[2:]) in ("aaabbb", "bbbaaa")
    assert taken.count == 1


def test_each_set_of_copies_has_one_value() -> None:
    sets = [rounds(bare=[1, 1, 1], ours=[1, 2, 9]), rounds(bare=[2, 2], ours=[8, 8])]
    joined = Rounds.joined(sets)
    assert joined.count == 5
    assert joined.ratio("ours", "bare") == Spread.of([2, 4])
    assert joined.difference("ours", "bare") == Spread.of([1, 6])
    assert joined.renamed({"new": "ours", "bare": "bare"}).ratio("new", "bare") == Spread.of([2, 4])
    assert Rounds.joined(sets[:1]).ratio("ours", "bare") == Spread.of([1, 2, 9])


def test_maximum_number_of_rounds() -> None:
    assert take_turns({"a": lambda: None}, seconds=1e6, most=4).count == 4


def test_memory_has_the_peak_and_the_rest() -> None:
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


def test_spread_of_a_single_value() -> None:
    assert Spread.of([2.0]).to_json() == [2.0, 2.0, 2.0]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_quartiles_enclose_the_median(values: list[float]) -> None:
    found = Spread.of(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


def test_quartiles_are_linear_and_include_both_ends() -> None:
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4)
    with pytest.raises(ValueError):
        Spread.of([])
