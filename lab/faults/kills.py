"""Works killed as `kill -9` does: at random moments, and right before each of their file operations."""

from __future__ import annotations

import random
import time
from pathlib import Path

from lab.faults._children import Child, count_events, kill_at, run, some, start
from lab.faults._subjects import Subject
from lab.faults._trials import Count, fresh


def at_random(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """Kill it `rounds` times at moments drawn from the time that it takes; each time, the next run goes on.

    After every eight kills, or when the work was done before the kill came, it is done to its end.
    """
    moments = random.Random(f"{subject.name} {seed}")
    took = _seconds(subject, fresh(place))
    count = Count()
    folder, since = fresh(place), 0
    subject.prepare(folder)
    while count.trials < rounds:
        child: Child = start(lambda: subject.work(folder))
        child.kill_after(moments.uniform(0, took))
        ending = child.wait()
        count.add(ending, lambda: subject.check(folder))
        since += 1
        if ending.how == "done" or since == 8:
            count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))
            folder, since = fresh(place), 0
            subject.prepare(folder)
    return count


def at_operations(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """Kill it right before a file operation, for each of them or `rounds` drawn at random; then do it to its end."""
    count = Count()
    folder = fresh(place)
    subject.prepare(folder)
    for number in some(count_events(lambda: subject.work(folder), folder), rounds, seed):
        folder = fresh(place)
        subject.prepare(folder)
        ending = run(lambda: subject.work(folder), lambda: kill_at(number, folder))
        count.add(ending, lambda: subject.check(folder))
        count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))
    return count


def _seconds(subject: Subject, folder: Path) -> float:
    """How long the work takes undisturbed. Only where the kills fall depends on it, not what is found right."""
    subject.prepare(folder)
    began = time.monotonic()
    ending = run(lambda: subject.work(folder))
    assert ending.how == "done", ending
    return time.monotonic() - began
