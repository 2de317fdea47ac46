"""Find the position of a model call in the sampling, for hypernetworks that act in a part of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

_TRAIN_TIMESTEPS = 1000


def is_active(step: tuple[float, float], start: float, end: float) -> bool:
    """Return True if a whole step is in a window, as for diffusers' `control_guidance_start`; all are fractions."""
    return start <= step[0] and step[1] <= end


def timestep_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """Return the timestep of a UNet's call, the largest of a batch. Reading it waits for an accelerator."""
    timestep = args[1] if len(args) > 1 else kwargs.get("timestep", kwargs.get("timesteps"))
    if isinstance(timestep, torch.Tensor):
        return float(timestep.max())
    return float(timestep)


class Clock(Protocol):
    """Source of the position in the sampling."""

    def step(self, timestep: float) -> tuple[float, float]:
        """Return the fractions of the sampling, 0 to 1, at which the step with this timestep begins and ends."""
        ...


class SamplingClock:
    """Turns a timestep into a position in the sampling.

    The position among the timesteps of the pipeline's scheduler counts from the first step of the run, because img2img
    skips some. Without a pipeline, or for an unknown timestep, the fraction is `1 - timestep / num_train_timesteps`.

    The pipeline is a weak reference, and the scheduler is looked up at every step because users replace it.
    """

    def __init__(self, pipeline: object | None = None) -> None:
        self._pipeline = _reference(pipeline)
        self._timesteps: torch.Tensor | None = None
        self._values: list[float] = []
        self._first = 0

    def step(self, timestep: float) -> tuple[float, float]:
        """Return the fractions at which the step begins and ends, the same for both if the steps are unknown."""
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
            # Some schedulers know where img2img begins; for the others it is the first call.
            self._first = (scheduler.begin_index or 0) if hasattr(scheduler, "begin_index") else index
        first = min(self._first, index)
        count = len(self._values) - first
        return (index - first) / count, (index - first + 1) / count

    def __deepcopy__(self, memo: dict[int, Any]) -> SamplingClock:
        """Follow the copy of the pipeline if it is copied too, else the pipeline."""
        pipeline = self._pipeline()
        return SamplingClock(memo.get(id(pipeline), pipeline))

    def __reduce__(self) -> tuple[type[SamplingClock], tuple[()]]:
        """Pickle without the pipeline."""
        return SamplingClock, ()


def _reference(value: object) -> Callable[[], object]:
    """Return a weak reference, or a strong one if the class has no weak references."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value
