"""Time several ways to do one thing in turns, in one process.

Other programs disturb every timing. So the ways take turns, in a new order in each round, and ratios compare times of
the same round. Reports have the median of all rounds with its quartiles.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

Action = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the median and quartiles of one or more values, with linear interpolation that includes both ends."""
        if not values:
            raise ValueError("Expected at least one value.")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def to_json(self) -> list[float]:
        return [self.median, self.low, self.high]


@dataclass(frozen=True)
class Sample:
    """Wall time and processor time (over all threads) of one run, in seconds."""

    wall: float
    cpu: float


class Rounds:
    """The samples of several ways, one for each way and round.

    Rounds can come from several sets of copies, because the place of a copy in memory changes its speed. Ratios and
    differences then have one value for each set, the median of its rounds.
    """

    def __init__(self, samples: Mapping[str, Sequence[Sample]], sets: Sequence[int] = ()) -> None:
        """Create the rounds; `sets` has the number of rounds of each set of copies, and is empty for a single one."""
        counts = {len(each) for each in samples.values()}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(f"Expected the same number of samples for every way, got {sorted(counts)}.")
        self.samples = {way: tuple(each) for way, each in samples.items()}
        self.count = counts.pop()
        self._sets = tuple(sets)

    @classmethod
    def joined(cls, parts: Sequence[Rounds]) -> Rounds:
        """Join the rounds of several sets of copies."""
        samples = {way: [each for part in parts for each in part.samples[way]] for way in parts[0].samples}
        return cls(samples, [part.count for part in parts] if len(parts) > 1 else ())

    def renamed(self, names: Mapping[str, str]) -> Rounds:
        """Return the ways that are the values of `names`, under its keys."""
        return Rounds({new: self.samples[old] for new, old in names.items()}, self._sets)

    def seconds(self, way: str) -> Spread:
        """Return the wall time of a way."""
        return Spread.of([sample.wall for sample in self.samples[way]])

    def ratio(self, way: str, base: str) -> Spread:
        """Return the wall time divided by the one of `base` in the same round."""
        return Spread.of(self._ratios(way, base))

    def cpu_ratio(self, way: str, base: str) -> Spread:
        """Return the same ratio of processor times, which ignores waiting and most disturbance."""
        return Spread.of(self._compare(way, base, lambda one, other: one.cpu / max(other.cpu, 1e-9)))

    def difference(self, way: str, base: str) -> Spread:
        """Return the wall time minus the one of `base` in the same round."""
        return Spread.of(self._compare(way, base, lambda one, other: one.wall - other.wall))

    def share(self, way: str, of: str, base: str) -> Spread:
        """Return the time that `way` adds to `base`, relative to `of`: (way / base - 1) / (of / base - 1).

        One round is too noisy for this quotient. So it is computed from medians over the rounds, and the quartiles come
        from a bootstrap of 1,000 resamplings with a fixed seed.
        """
        ways = [[ratio - 1 for ratio in self._ratios(each, base)] for each in (way, of)]
        count = len(ways[0])
        draw = random.Random(0)
        shares = []
        for _ in range(1000):
            rounds = draw.choices(range(count), k=count)
            shares.append(_quotient(*(statistics.median(added[i] for i in rounds) for added in ways)))
        spread = Spread.of(shares)
        return Spread(_quotient(*map(statistics.median, ways)), spread.low, spread.high)

    def excess(self, way: str, base: str) -> float:
        """Return the seconds that `way` adds to `base`, from the median ratio."""
        return (statistics.median(self._ratios(way, base)) - 1) * self.seconds(base).median

    def _ratios(self, way: str, base: str) -> list[float]:
        return self._compare(way, base, lambda one, other: one.wall / other.wall)

    def _compare(self, way: str, base: str, compare: Callable[[Sample, Sample], float]) -> list[float]:
        """Return a value for each round, or for each set of copies."""
        pairs = zip(self.samples[way], self.samples[base], strict=True)
        values = [compare(one, other) for one, other in pairs]
        if not self._sets:
            return values
        edges = itertools.accumulate(self._sets, initial=0)
        return [statistics.median(values[begin:end]) for begin, end in itertools.pairwise(edges)]


def _quotient(part: float, whole: float) -> float:
    return part / whole if whole else float("inf")


def take_turns(
    ways: Mapping[str, Action], *, seconds: float, least: int = 3, most: int = 15, warm_up: int = 1, burst: int = 1
) -> Rounds:
    """Run the ways in turns until the time is up.

    Args:
        ways: Functions by name.
        seconds: Time after which no round starts, including the warm-up.
        least: Minimum number of rounds.
        most: Maximum number of rounds.
        warm_up: Uncounted runs of each way before the first round.
        burst: Runs of a way in succession in each round; the sample is their median.
    """
    end = time.perf_counter() + seconds
    for _ in range(warm_up):
        for action in ways.values():
            action()
    samples: dict[str, list[Sample]] = {way: [] for way in ways}
    order = list(ways)
    for number in range(most):
        if number >= least and time.perf_counter() > end:
            break
        # Neighbors change, because a way finds the processor's caches as the way before it leaves them. Every second
        # round is the reverse of the one before, so that a steady drift affects all ways alike.
        order = order[::-1] if number % 2 else random.sample(order, len(order))
        for name in order:
            taken = [timed(ways[name]) for _ in range(burst)]
            samples[name].append(sorted(taken, key=lambda sample: sample.wall)[burst // 2])
    return Rounds(samples)


def timed(action: Action) -> Sample:
    """Run an action once and time it, on a GPU with events of the device."""
    if torch.cuda.is_available():
        return _timed_on_gpu(action)
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def _timed_on_gpu(action: Action) -> Sample:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    cpu = time.process_time()
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return Sample(begin.elapsed_time(end) / 1000, time.process_time() - cpu)


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors that an action allocated: at the peak, and still at its end."""

    peak: int
    kept: int


def memory_of(action: Action) -> Memory:
    """Run an action and count its tensors' bytes from torch's record of allocations."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return Memory(torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return Memory(peak, held)
