"""The exponential moving average of the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Ema:
    """The average of parameters over time; off with a decay of 0.

    Attributes:
        values: The averages; None if it is off.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters] if decay else None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step, counted from 1; early steps count more."""
        if self.values is not None:
            for average, parameter in zip(self.values, self._parameters, strict=True):
                average.lerp_(parameter, 1 - min(self._decay, step / (step + 9)))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Set the parameters to their averages while this is active."""
        if self.values is None:
            yield
            return
        present = [parameter.detach().clone() for parameter in self._parameters]
        self._set(self.values)
        try:
            yield
        finally:
            self._set(present)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
