"""Kill work with SIGKILL at random moments and right before each file operation."""

from __future__ import annotations

import random
import time
from pathlib import Path

from lab.faults._children import Child, count_events, kill_at, run, some, start
from lab.faults._subjects import Subject
from lab.faults._trials import Count, fresh


def at_random(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """Kill the work `rounds` times at random moments; each run resumes the previous one.

    After eight kills, or after work that finished before its kill, it runs undisturbed.
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
    """Kill the work before each file operation, or `rounds` random ones; then run it undisturbed."""
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
    """Return the time of the undisturbed work, which only affects the moments of the kills."""
    subject.prepare(folder)
    began = time.monotonic()
    ending = run(lambda: subject.work(folder))
    assert ending.how == "done", ending
    return time.monotonic() - began
