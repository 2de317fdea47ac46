from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from lab.faults._growth import without_growth


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    """Exclude the objects of other tests from garbage collection, which would take seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def nothing(index: int) -> None:
    bytearray(100_000)


def grow_once() -> Callable[[int], None]:
    kept: list[bytes] = []
    return lambda index: kept.append(bytes(300_000)) if index == 70 else None


def grow_twice() -> Callable[[int], None]:
    kept: list[bytes] = []
    return lambda index: kept.append(bytes(300_000)) if index in (60, 90) else None


def leak_memory() -> Callable[[int], None]:
    kept: list[bytes] = []
    return lambda index: kept.append(bytes(2_000))


def leak_objects() -> Callable[[int], None]:
    kept: list[object] = []
    return lambda index: kept.append([])


@pytest.mark.parametrize("once", [nothing, grow_once(), grow_twice()])
def test_rare_growth_is_not_a_leak(once: Callable[[int], None]) -> None:
    count = without_growth(once, 100, lambda: 6)
    assert (count.trials, count.wrong) == (100, [])


@pytest.mark.parametrize(("once", "left"), [(leak_memory(), "memory leaks"), (leak_objects(), "objects leak")])
def test_leaks(once: Callable[[int], None], left: str) -> None:
    assert without_growth(once, 100, lambda: 6).wrong == [left]


def test_open_files() -> None:
    numbers = iter(range(10))
    count = without_growth(nothing, 100, lambda: next(numbers) // 4)
    assert count.wrong == ["hooks or open files leak"]
