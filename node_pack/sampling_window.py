"""The part of the sampling in which a hypernetwork acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hnloader.attention.schedule import is_active
from hnloader.errors import HypernetworkError
from hnloader.prompt import format_number

# ComfyUI's habit is a fraction of the noise schedule; that of the webuis is a fraction of the steps.
By = Literal["percent", "steps"]


@dataclass(frozen=True)
class Window:
    """A part of the sampling, from `start` to `end`.

    Args:
        start: Where it begins. 0 to 1.
        end: Where it ends, more than `start`. 0 to 1.
        by: "percent" counts as ComfyUI's `start_percent`; "steps" counts the steps, as in the webuis.

    Raises:
        HypernetworkError: The window is empty.
    """

    start: float = 0.0
    end: float = 1.0
    by: By = "percent"

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            found = f"start {format_number(self.start)} and end {format_number(self.end)}"
            raise HypernetworkError(f"Window: found {found}. Set start to less than end.")

    @property
    def whole(self) -> bool:
        """True if it covers the whole sampling."""
        return self.start == 0.0 and self.end == 1.0

    def holds(self, sigma: float, sigmas: Sequence[float], sampling: Any) -> bool:
        """Return True if the window holds a call of the model.

        Args:
            sigma: Noise of the call.
            sigmas: Noise at the beginning of each step, and that at the end; empty if unknown.
            sampling: ComfyUI's `model_sampling`.
        """
        if self.whole:
            return True
        if self.by == "percent":
            first, last = (float(sampling.percent_to_sigma(fraction)) for fraction in (self.start, self.end))
            return first >= sigma >= last
        if len(sigmas) < 2:
            raise HypernetworkError("Window: this sampler does not report its steps. Set the window to percent.")
        count = len(sigmas) - 1
        # Samplers of second order also call the model between two steps.
        step = min(max(sum(sigma <= each * (1 + 1e-6) for each in sigmas) - 1, 0), count - 1)
        return is_active((step / count, (step + 1) / count), self.start, self.end)
