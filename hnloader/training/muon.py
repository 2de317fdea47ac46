"""Muon for matrices and AdamW for all other parameters, as one optimizer; torch's own Muon takes matrices only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn, optim

__all__ = ["Muon"]

# Torch releases before 2.9 lack it and fail here; `OptimizerKind.load` turns this into a message.
_TorchMuon = optim.Muon


class Muon(optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): steps along the orthogonalized momentum.

    The steps have the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one learning rate suits both.

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
            self._parts.append(_TorchMuon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw"))
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
