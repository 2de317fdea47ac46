"""Estimate the time to the end of a training run."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, get_args

from hnloader.training.config import Config

__all__ = ["Pace"]

Kind = Literal["step", "validation", "preview", "save"]
# The most times of a kind that count, so that an estimate takes no longer after many steps.
_MOST = 100


class Pace:
    """The time that steps, validations, previews and saved states take.

    Validations and the like are rare and long, so that a mean over all work so far would be far off: the first step is
    followed by previews. Each kind has its own mean, and the settings tell how often it is still due. The first steps
    encode images, so the earlier half of the steps and those of twice the usual time are left out. Of many steps, the
    last hundred count: other programs come and go.

    Args:
        config: The settings.
        clock: Returns the time in seconds. Default: `time.monotonic`.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        kinds: tuple[Kind, ...] = get_args(Kind)
        self._took = {kind: deque[float](maxlen=2 * _MOST) for kind in kinds}

    @contextlib.contextmanager
    def measured(self, kind: Kind) -> Iterator[None]:
        """Measure the time of the work in the block."""
        start = self._clock()
        yield
        self._took[kind].append(self._clock() - start)

    def left(self, step: int) -> float | None:
        """Return the estimated seconds after a step; None before the first one."""
        if not self._took["step"]:
            return None
        config = self._config
        left = (config.steps - step) * self._mean("step")
        intervals: dict[Kind, int] = {
            "validation": config.validate_every_n_steps,
            "preview": config.previews.every_n_steps,
            "save": config.save_every_n_steps,
        }
        for kind, every in intervals.items():
            left += _due(step, config.steps, every) * self._mean(kind)
        return left

    def _mean(self, kind: Kind) -> float:
        took = list(self._took[kind])
        if not took:
            return 0.0
        later = took[len(took) // 2 :]
        limit = 2 * statistics.median(later)
        usual = [each for each in later if each <= limit]
        return sum(usual) / len(usual)


def _due(step: int, steps: int, every: int) -> int:
    """Return how often something is due after a step: at each multiple of `every` and at the last step."""
    if not every or step >= steps:
        return 0
    return steps // every - step // every + (steps % every != 0)
