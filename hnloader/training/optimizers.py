"""Optimizers by name: torch's own, and those of well-kept packages when they are installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from torch import nn, optim

from hnloader.errors import HypernetworkError

# name -> (package to install, module, class, arguments beside learning rate and weight decay)
_PACKAGED: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "adamw8bit": ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit", {}),
    "prodigy": ("prodigyopt", "prodigyopt", "Prodigy", {"safeguard_warmup": True}),
    "lion": ("lion-pytorch", "lion_pytorch", "Lion", {}),
    "adafactor": ("transformers", "transformers.optimization", "Adafactor", {"relative_step": False}),
}


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], rate: float, decay: float) -> optim.Optimizer:
    """The optimizer of this name.

    Raises:
        HypernetworkError: its package is not installed; the message says which.
    """
    if name == "adamw":
        # One kernel per tensor: the fused one rounds differently on each device.
        return optim.AdamW(parameters, lr=rate, weight_decay=decay)
    if name == "sgd":
        return optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9)
    package, module, kind, extra = _PACKAGED[name]
    try:
        made = getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise HypernetworkError(
            f"optimizer: {name} needs the package {package}: pip install {package}, or take adamw"
        ) from error
    optimizer: optim.Optimizer = made(parameters, lr=rate, weight_decay=decay, **extra)
    return optimizer


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
