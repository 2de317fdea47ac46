"""Whether what is done again and again leaves something behind."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from statistics import median_low

from lab.faults._trials import Count

# The second half of the rounds is counted in so many parts.
PARTS = 4


def without_growth(once: Callable[[int], None], times: int, others: Callable[[], int]) -> Count:
    """Do it many times; what is counted after half of them must not grow from there on.

    A leak grows in all parts of the second half. A table of Python's own (its list of all classes, of all texts) grows
    once by some hundred kilobytes and then for a long time no more: one or two of four parts may.

    Args:
        once: what is done, given the number of the round.
        times: how often, 8 at least.
        others: counts what must be the same number to the end, such as open files.
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
    # Some objects come and go with the interpreter's own caches; a leak of anything would be one of each round.
    if objects[-1] - objects[0] >= max(rounds // 10, 20):
        count.wrong.append("objects are left over")
    if median_low(late - early for early, late in pairwise(held)) >= max(rounds * 40, 64_000) // PARTS:
        count.wrong.append("memory is left over")
    if len(set(other)) > 1:
        count.wrong.append("hooks or open files are left over")
    return count


def _counted(others: Callable[[], int]) -> tuple[int, int, int]:
    gc.collect()
    return len(gc.get_objects()), tracemalloc.get_traced_memory()[0], others()
