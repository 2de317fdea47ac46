"""Where in the sampling a model call is, for hypernetworks that act in a part of it only."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

_TRAIN_TIMESTEPS = 1000


def is_active(step: tuple[float, float], start: float, end: float) -> bool:
    """Whether a step lies in a window.

    The rule of diffusers' `control_guidance_start` and `control_guidance_end`: the whole step must lie
    inside.

    Args:
        step: Fractions of the sampling at which the step begins and ends.
        start: Fraction at which the window opens.
        end: Fraction at which it closes.
    """
    return start <= step[0] and step[1] <= end


def timestep_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The timestep that a UNet was called with; the largest one of a batch.

    A tensor on an accelerator is read back, which waits for the device.
    """
    timestep = args[1] if len(args) > 1 else kwargs.get("timestep", kwargs.get("timesteps"))
    if isinstance(timestep, torch.Tensor):
        return float(timestep.max())
    return float(timestep)


class Clock(Protocol):
    """Tells where in the sampling a call of the model is."""

    def step(self, timestep: float) -> tuple[float, float]:
        """Fractions of the sampling, 0 to 1, at which the step with this timestep begins and ends."""
        ...


class SamplingClock:
    """Turns a timestep into a position in the sampling.

    With a pipeline its scheduler tells: the position among `scheduler.timesteps`, counted from the first step
    of this run, so that img2img, which leaves out the first ones, goes from 0 to 1 as well. Without a
    pipeline, or for a timestep that is not among them, the fraction is `1 - timestep / num_train_timesteps`.

    The pipeline is held by a weak reference and the scheduler looked up at every step, because it may be
    replaced.
    """

    def __init__(self, pipeline: object | None = None) -> None:
        self._pipeline = _reference(pipeline)
        self._timesteps: torch.Tensor | None = None
        self._values: list[float] = []
        self._first = 0

    def step(self, timestep: float) -> tuple[float, float]:
        """Fractions of the sampling, 0 to 1, at which the step with this timestep begins and ends.

        Both are the same where only the fraction of the noise is known and not the steps.
        """
        scheduler = getattr(self._pipeline(), "scheduler", None)
        position = self._position(scheduler, timestep)
        if position is not None:
            return position
        config = getattr(scheduler, "config", {})
        total = config.get("num_train_timesteps", _TRAIN_TIMESTEPS)
        fraction = min(max(1 - timestep / total, 0.0), 1.0)
        return fraction, fraction

    def _position(self, scheduler: object, timestep: float) -> tuple[float, float] | None:
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, torch.Tensor):
            return None
        new_run = timesteps is not self._timesteps  # every run of a pipeline sets new timesteps
        if new_run:
            self._timesteps, self._values = timesteps, timesteps.tolist()
        if timestep not in self._values:
            return None
        index = self._values.index(timestep)
        if new_run:
            # Some schedulers are told where img2img begins; with the others it is where the first call is.
            self._first = (scheduler.begin_index or 0) if hasattr(scheduler, "begin_index") else index
        first = min(self._first, index)
        count = len(self._values) - first
        return (index - first) / count, (index - first + 1) / count

    def __deepcopy__(self, memo: dict[int, Any]) -> SamplingClock:
        """A copied pipeline's model follows the copy; a model copied alone still follows its pipeline."""
        pipeline = self._pipeline()
        return SamplingClock(memo.get(id(pipeline), pipeline))

    def __reduce__(self) -> tuple[type[SamplingClock], tuple[()]]:
        """A pickled model has no pipeline."""
        return SamplingClock, ()


def _reference(value: object) -> Callable[[], object]:
    """A weak reference, or a strong one to what cannot have a weak one."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value
