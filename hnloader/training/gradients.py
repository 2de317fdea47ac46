"""Checks of the gradients of a training run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hnloader.errors import HypernetworkError

# A training run without a gradient for this number of steps does not learn.
_MAX_STEPS = 10
_ADVICE = {
    "hypernetwork": "Check hypernetwork.widths, activation and initialization, or the file in start_from.",
    "lora": "Check lora.targets, or the file in start_from.",
    "embedding": "Check that the model reads the placeholder token in the captions, or shorten them.",
}


class GradientCheck:
    """Raises an error if no gradient ever reaches the parameters.

    Args:
        parameters: The trained parameters.
        method: "hypernetwork", "embedding" or "lora".
        steps: The number of steps of the training.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], method: str, steps: int) -> None:
        self._parameters, self._method, self._steps = parameters, method, steps
        self._missing: int | None = 0  # steps without a gradient; None after the first one

    def check(self, step: int) -> None:
        """Check the gradients of a step, or raise HypernetworkError."""
        if self._missing is None:
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if any(bool(gradient.any()) for gradient in gradients):
            self._missing = None
            return
        self._missing += 1
        if not gradients or self._missing == _MAX_STEPS or step == self._steps:
            raise HypernetworkError(
                f"Step {step}: no gradient reaches the {self._method}, so it does not learn. {_ADVICE[self._method]}"
            )

    def all_finite(self) -> bool:
        """Return True if all gradients are finite."""
        return all(
            bool(parameter.grad.isfinite().all()) for parameter in self._parameters if parameter.grad is not None
        )
