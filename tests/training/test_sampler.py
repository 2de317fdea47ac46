"""The batches of a step follow from the seed and the step alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from hnloader.training.sampler import BatchSampler, generator_for, random_below, split

SIZES = st.lists(st.sampled_from([(64, 64), (32, 96), (96, 32)]), min_size=1, max_size=20)


@settings(deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 5), repeats=st.integers(1, 3), seed=st.integers(0, 99))
def test_an_epoch_shows_each_image_the_same_number_of_times(
    sizes: list[tuple[int, int]], batch: int, repeats: int, seed: int
) -> None:
    order = BatchSampler(sizes, batch, repeats, seed)
    shown = Counter(draw.image for index in range(len(order)) for draw in order[index])
    assert set(shown) == set(range(len(sizes)))
    assert min(shown.values()) >= repeats
    # What is more fills up the last batch of each size.
    assert sum(shown.values()) - repeats * len(sizes) < batch * len(set(sizes))


@settings(deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_batch_has_one_size(sizes: list[tuple[int, int]], batch: int, seed: int) -> None:
    order = BatchSampler(sizes, batch, 1, seed)
    numbers = []
    for index in range(2 * len(order)):
        assert len(order[index]) == batch
        assert len({sizes[draw.image] for draw in order[index]}) == 1
        numbers += [draw.number for draw in order[index]]
    assert numbers == list(range(len(numbers)))


@given(sizes=SIZES, start=st.integers(0, 60))
def test_the_order_does_not_depend_on_the_start(sizes: list[tuple[int, int]], start: int) -> None:
    forward = BatchSampler(sizes, 2, 1, seed=3)
    expected = [forward[index] for index in range(start + 10)][start:]
    late = BatchSampler(sizes, 2, 1, seed=3)
    assert [late[index] for index in range(start, start + 10)] == expected


def test_epochs_differ() -> None:
    order = BatchSampler([(64, 64)] * 12, 3, 1, seed=0)
    rounds = [[draw.image for index in range(4) for draw in order[start + index]] for start in (0, 4, 8)]
    assert len({tuple(each) for each in rounds}) == 3


def test_generators_differ() -> None:
    seen = {
        random_below(generator_for(seed, what, number), 2**40)
        for seed in (0, 1)
        for what in "ab"
        for number in range(50)
    }
    assert len(seen) == 200


@given(st.integers(1, 60), st.floats(0, 0.5), st.integers(0, 50))
def test_validation_split(count: int, share: float, seed: int) -> None:
    trained, kept = split(count, share, seed)
    assert sorted(trained + kept) == list(range(count))
    assert trained
    assert bool(kept) == (share > 0 and count >= 5)
