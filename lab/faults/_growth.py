"""Detect leaks of repeated actions."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from statistics import median_low

from lab.faults._trials import Count

PARTS = 4  # of the second half of the rounds; counts are taken at their ends


def without_growth(once: Callable[[int], None], times: int, others: Callable[[], int]) -> Count:
    """Repeat an action and check that counts do not grow in the second half of the rounds.

    A leak grows in all parts of the second half. Python's own tables (of classes, of interned strings) grow rarely, by
    some hundred kilobytes, so one or two of the four parts may grow.

    Args:
        once: The action, called with the number of the round.
        times: Number of rounds, at least 8.
        others: Returns a count that must stay constant, such as open files.
    """
    count = Count()
    marks = [times // 2 + (times - times // 2) * part // PARTS for part in range(PARTS + 1)]
    counted: list[tuple[int, int, int]] = []
    tracemalloc.start()
    for index in range(times):
        once(index)
        count.endings["done"] += 1
        if index + 1 in marks:
            counted.append(_counted(others))
    tracemalloc.stop()
    objects, held, other = zip(*counted, strict=True)
    named = (("objects", objects), ("bytes held by Python", held), ("hooks or open files", other))
    count.notes += [f"{what}: {', '.join(f'{number:,}' for number in numbers)}" for what, numbers in named]
    rounds = times - times // 2
    # The interpreter's own caches hold some objects; a leak would add one per round.
    if objects[-1] - objects[0] >= max(rounds // 10, 20):
        count.wrong.append("objects leak")
    if median_low(late - early for early, late in pairwise(held)) >= max(rounds * 40, 64_000) // PARTS:
        count.wrong.append("memory leaks")
    if len(set(other)) > 1:
        count.wrong.append("hooks or open files leak")
    return count


def _counted(others: Callable[[], int]) -> tuple[int, int, int]:
    gc.collect()
    return len(gc.get_objects()), tracemalloc.get_traced_memory()[0], others()
