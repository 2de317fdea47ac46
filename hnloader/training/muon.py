"""Muon for matrices and AdamW for all other parameters, as one optimizer.

Torch has a Muon for matrices since 2.9. This one works with every torch and gives the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

__all__ = ["Muon"]

_MOMENTUM = 0.95
# The polynomial of Jordan et al.; five steps bring the singular values near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): steps along the orthogonalized momentum.

    The steps have the size of AdamW's in long training runs (Liu et al. 2025, arXiv:2502.16982).

    Args:
        params: Parameters. Those with two dimensions get Muon.
        lr: The learning rate.
        weight_decay: The decoupled weight decay.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        given = list(params)
        matrices = [parameter for parameter in given if parameter.ndim == 2]
        others = [parameter for parameter in given if parameter.ndim != 2]
        self._parts: list[optim.Optimizer] = []
        if matrices:
            self._parts.append(_MatrixMuon(matrices, lr, weight_decay))
        if others:
            self._parts.append(optim.AdamW(others, lr, weight_decay=weight_decay))
        super().__init__(
            [group for part in self._parts for group in part.param_groups], {"lr": lr, "weight_decay": weight_decay}
        )
        self._share()

    def _share(self) -> None:
        """Let the parts use the groups and the state of this optimizer, which saves and loads them."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """See `torch.optim.Optimizer`."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`."""
        super().load_state_dict(state_dict)
        self._share()


class _MatrixMuon(optim.Optimizer):
    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - _MOMENTUM)
                update = _orthogonalized(parameter.grad.lerp(momentum, _MOMENTUM))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * math.sqrt(max(parameter.shape)) * group["lr"])


def _orthogonalized(matrix: Tensor) -> Tensor:
    """Return about U Vᵀ of the singular value decomposition U S Vᵀ of a matrix, by Newton and Schulz's iteration."""
    # Its errors are larger than those of bfloat16, in which GPUs are fast. Many CPUs are slow in it.
    kept = matrix.float() if matrix.device.type == "cpu" else matrix.bfloat16()
    wide = kept.T if kept.shape[0] > kept.shape[1] else kept
    wide = wide / wide.norm().clamp(min=1e-7)  # no singular value is above 1
    first, second, third = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = first * wide + (second * gram + third * gram @ gram) @ wide
    update: Tensor = wide.T if kept.shape[0] > kept.shape[1] else wide
    return update.to(matrix.dtype)
