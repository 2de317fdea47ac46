"""Optimizers by name: torch's own, and those of well-kept packages when they are installed."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim

from hnloader.errors import MissingExtraError

# Learning rates of AdamW that suit full-size models.
ADAMW_RATES = {"hypernetwork": 1e-4, "embedding": 5e-3}


@dataclass(frozen=True)
class Kind:
    """Where an optimizer comes from, and which learning rate it wants.

    Attributes:
        package: what to install; empty for torch's own.
        module, name: of the class.
        options: arguments beside learning rate and weight decay.
        share: its usual learning rate as a share of AdamW's.
        rate: its usual learning rate, where it has one that does not depend on what is trained.
    """

    package: str
    module: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    rate: float | None = None

    def load(self) -> Any:
        """The class. Raises MissingExtraError with what to install."""
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError) as error:
            old = isinstance(error, AttributeError)
            found = f"{self.package} is installed, but has no {self.name}" if old else f"{self.package} is not here"
            raise MissingExtraError(
                f"optimizer: {self.name} comes from the package {self.package} ({found}): "
                f"pip install {'--upgrade ' if old else ''}{self.package}, or take adamw"
            ) from error


KINDS: dict[str, Kind] = {
    # One kernel per tensor, which is the default: the fused one rounds differently on each device.
    "adamw": Kind("", "torch.optim", "AdamW"),
    "adamw8bit": Kind("bitsandbytes", "bitsandbytes.optim", "AdamW8bit"),
    # It finds the rate itself and multiplies it by this one.
    "prodigy": Kind("prodigyopt", "prodigyopt", "Prodigy", {"safeguard_warmup": True}, rate=1.0),
    # Its steps all have the length of the rate; its authors advise a third to a tenth of AdamW's.
    "lion": Kind("lion-pytorch", "lion_pytorch", "Lion", share=0.1),
    # With the rate as it is, not times the size of each weight: hypernetworks begin near nothing.
    "adafactor": Kind(
        "transformers",
        "transformers.optimization",
        "Adafactor",
        {"relative_step": False, "scale_parameter": False, "warmup_init": False},
    ),
    # Its steps are as long as the gradients, which `clip` holds at 1 at most.
    "sgd": Kind("", "torch.optim", "SGD", {"momentum": 0.9}, share=1000.0),
}


def auto_rate(name: str, method: str) -> float:
    """What `learning_rate: auto` means for an optimizer and a hypernetwork or an embedding."""
    kind = KINDS[name]
    return ADAMW_RATES[method] * kind.share if kind.rate is None else kind.rate


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], rate: float, decay: float) -> optim.Optimizer:
    """The optimizer of this name.

    Raises:
        MissingExtraError: its package is not installed; the message says which.
    """
    kind = KINDS[name]
    optimizer: optim.Optimizer = kind.load()(parameters, lr=rate, weight_decay=decay, **kind.options)
    return optimizer


def check_state(optimizer: optim.Optimizer, values: Iterable[Tensor], described: Mapping[str, Any]) -> None:
    """Try a state on copies of what is trained: torch itself notices at the first step, or never, that it does not fit.

    Args:
        optimizer: One of `make_optimizer`, which stays as it is.
        values: What it trains, as it is or will be.
        described: The state, as `optimizer.state_dict` gives it.

    Raises:
        ValueError: The optimizer cannot go on from the state.
    """
    name = next((name for name, kind in KINDS.items() if kind.name == type(optimizer).__name__), None)
    if name is None:
        return
    twins = [nn.Parameter(value.detach().clone()) for value in values]
    trial = make_optimizer(name, twins, 1e-4, 0.0)
    try:
        for twin in twins:
            twin.grad = torch.zeros_like(twin)
        trial.step()
        _check_groups(trial.state_dict()["param_groups"], described["param_groups"])
        _check_tensors(trial.state_dict()["state"], described["state"])
        trial.load_state_dict(copy.deepcopy(dict(described)))
        trial.step()
        finite = all(bool(torch.isfinite(twin).all()) for twin in twins)
    except Exception as error:  # each optimizer has its own ways to fail
        raise ValueError(str(error) or type(error).__name__) from error
    if not finite:
        raise ValueError("its values are not finite")


def _check_groups(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """Raise ValueError where a setting is of another type; another release of torch may have more or fewer."""
    for ours, theirs in zip(expected, found, strict=True):
        for key in ours.keys() & theirs.keys():
            if _form(ours[key]) != _form(theirs[key]):
                raise ValueError(f"its setting {key} is {str(theirs[key])[:80]!r}")


def _check_tensors(expected: Mapping[int, Mapping[str, Any]], found: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise ValueError where a tensor is of another shape or kind, which torch would convert without a word."""
    for index, values in found.items():
        for key, theirs in values.items():
            ours = expected[index].get(key)
            if not isinstance(theirs, Tensor) or not isinstance(ours, Tensor):
                continue
            if not theirs.is_complex() and (theirs.ndim == 0 or ours.ndim == 0):  # Prodigy keeps zeros as one value
                continue
            if theirs.shape != ours.shape or theirs.is_floating_point() != ours.is_floating_point():
                raise ValueError(f"{key} of parameter {index} is {str(theirs.dtype)[6:]} {list(theirs.shape)}")


def _form(value: object) -> object:
    """What a setting is, without its value: numbers are alike, and so are lists of as many."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, float)):
        return "number"
    if isinstance(value, (list, tuple)):
        return tuple(_form(each) for each in value)
    return type(value)


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
