"""The estimated time to the end, with a simulated clock."""

from __future__ import annotations

from typing import Any

import pytest

from hnloader.training import pace as pace_module
from hnloader.training import read_config
from hnloader.training.pace import Pace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def simulated(costs: dict[str, float], **settings: Any) -> tuple[list[float], list[float]]:
    """Run a training on paper; return the estimates and the true times after each step."""
    config = read_config(overrides={key.replace("__", "."): value for key, value in settings.items()})
    clock = Clock()
    pace = Pace(config, clock)

    def work(kind: Any, seconds: float) -> None:
        with pace.measured(kind):
            clock.now += seconds

    def due(step: int, every: int) -> bool:
        return bool(every) and (step % every == 0 or step == config.steps)

    if config.validate_every_n_steps:
        work("validation", costs["validation"])
    estimates, times = [], []
    for step in range(1, config.steps + 1):
        work("step", costs["first"] if step <= costs["images"] else costs["step"])
        if due(step, config.validate_every_n_steps):
            work("validation", costs["validation"])
        if due(step, config.save_every_n_steps):
            work("save", costs["save"])
        left = pace.left(step)
        assert left is not None
        if due(step, config.previews.every_n_steps) or (step == 1 and config.previews.every_n_steps):
            work("preview", costs["preview"])
        estimates.append(left)
        times.append(clock.now)
    return estimates, [clock.now - at for at in times]


@pytest.mark.parametrize(
    ("costs", "settings"),
    [
        ({}, {}),
        ({"preview": 40.0}, {}),
        ({"first": 2.0, "images": 30}, {}),
        ({"validation": 3.0, "preview": 12.0, "first": 0.8}, {"steps": 600, "validate_every_n_steps": 20}),
        ({"preview": 30.0}, {"previews__every_n_steps": 0, "validate_every_n_steps": 0}),
        ({"save": 1.0, "preview": 25.0}, {"steps": 3000, "previews__every_n_steps": 100, "save_every_n_steps": 100}),
    ],
)
def test_the_time_left_is_right_after_a_twentieth_of_the_steps(
    costs: dict[str, float], settings: dict[str, Any]
) -> None:
    usual = {"step": 0.2, "first": 0.5, "images": 20, "validation": 0.5, "preview": 6.0, "save": 0.1}
    estimates, truth = simulated({**usual, **costs}, **{"steps": 1500, **settings})
    for index in range(len(truth) // 20, len(truth) * 9 // 10):
        assert estimates[index] == pytest.approx(truth[index], rel=0.2), index
    assert estimates[-1] == 0


def test_nothing_is_estimated_before_the_first_step() -> None:
    assert Pace(read_config()).left(0) is None


def test_the_estimate_follows_a_change_of_pace() -> None:
    clock = Clock()
    pace = Pace(read_config(overrides={"steps": 20_000}), clock)
    for step in range(10_000):
        with pace.measured("step"):
            clock.now += 0.2 if step < 9_800 else 0.5
    assert pace.left(10_000) == pytest.approx(10_000 * 0.5, rel=0.01)


def test_an_estimate_costs_the_same_after_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_values: list[int] = []
    median = pace_module.statistics.median
    monkeypatch.setattr(pace_module.statistics, "median", lambda data: sorted_values.append(len(data)) or median(data))
    pace = Pace(read_config(overrides={"steps": 20_000}), Clock())
    counts = []
    for step in (1_000, 10_000):
        for _ in range(step):
            with pace.measured("step"):
                pass
        sorted_values.clear()
        pace.left(step)
        counts.append(sum(sorted_values))
    assert counts[0] == counts[1] <= 400
