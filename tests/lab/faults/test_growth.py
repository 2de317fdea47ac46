"""What `lab.faults load` says of things that are done again and again and leave something behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab.faults._growth import without_growth


def nothing(index: int) -> None:
    bytearray(100_000)


def a_table_that_doubles_once() -> Callable[[int], None]:
    kept: list[bytes] = []
    return lambda index: kept.append(bytes(300_000)) if index == 70 else None


def a_table_that_doubles_twice() -> Callable[[int], None]:
    kept: list[bytes] = []
    return lambda index: kept.append(bytes(300_000)) if index in (60, 90) else None


def a_text_of_each_round() -> Callable[[int], None]:
    kept: list[bytes] = []
    return lambda index: kept.append(bytes(2_000))


def an_object_of_each_round() -> Callable[[int], None]:
    kept: list[object] = []
    return lambda index: kept.append([])


@pytest.mark.parametrize("once", [nothing, a_table_that_doubles_once(), a_table_that_doubles_twice()])
def test_what_comes_and_goes_or_grows_once_is_no_leak(once: Callable[[int], None]) -> None:
    count = without_growth(once, 100, lambda: 6)
    assert (count.trials, count.wrong) == (100, [])


@pytest.mark.parametrize(
    ("once", "left"), [(a_text_of_each_round(), "memory is"), (an_object_of_each_round(), "objects are")]
)
def test_what_each_round_leaves_behind_is_found(once: Callable[[int], None], left: str) -> None:
    assert without_growth(once, 100, lambda: 6).wrong == [f"{left} left over"]


def test_a_file_that_stays_open_is_found() -> None:
    numbers = iter(range(10))
    count = without_growth(nothing, 100, lambda: next(numbers) // 4)
    assert count.wrong == ["hooks or open files are left over"]
