"""Optimizers by name: torch's own, and those of other packages when installed."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim

from hnloader.errors import MissingExtraError

# Learning rates of AdamW that suit full-size models, and the width of the widest self-attention in SD 1, SD 2 and SDXL.
# The best rate of Adam falls as 1 / width (Yang et al. 2022, arXiv:2203.03466).
_ADAMW_RATES = {"hypernetwork": 1e-4, "embedding": 5e-3, "lora": 1e-4, "predictor": 1e-4}
FULL_WIDTH = 1280
_MOST_FACTOR = 10.0  # narrower models were not tried
# On small language models, three times the rate is better in all cases, and ten times in most (docs/dev/real-text.md).
_TEXT_FACTOR = 3.0


@dataclass(frozen=True)
class OptimizerKind:
    """The origin of an optimizer and its usual learning rate.

    Attributes:
        package: The package to install; empty for torch.
        module: The module of the class.
        name: The name of the class.
        options: Arguments besides the learning rate and the weight decay.
        adamw_factor: The usual learning rate as a multiple of AdamW's.
        learning_rate: The usual learning rate, if it is the same for all methods.
    """

    package: str
    module: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    adamw_factor: float = 1.0
    learning_rate: float | None = None

    def load(self) -> Any:
        """Import the class, or raise MissingExtraError with the command that installs it."""
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except (ImportError, AttributeError) as error:
            outdated = isinstance(error, AttributeError)
            found = f"{self.package} is too old for {self.name}" if outdated else f"{self.package} is not installed"
            raise MissingExtraError(
                f"Setting 'optimizer': {found}. Run: pip install {'--upgrade ' if outdated else ''}{self.package}; "
                "or choose adamw."
            ) from error


OPTIMIZERS: dict[str, OptimizerKind] = {
    # Not fused: the fused kernel rounds differently on each device.
    "adamw": OptimizerKind("", "torch.optim", "AdamW"),
    "adamw8bit": OptimizerKind("bitsandbytes", "bitsandbytes.optim", "AdamW8bit"),
    # Its steps have the size of AdamW's in long training runs, a fifth of the learning rate; in short ones, AdamW's are
    # as large as the rate.
    "muon": OptimizerKind("", "hnloader.training.muon", "Muon", adamw_factor=4.0),
    # It estimates the rate and multiplies it by this one.
    "prodigy": OptimizerKind("prodigyopt", "prodigyopt", "Prodigy", {"safeguard_warmup": True}, learning_rate=1.0),
    # The length of its steps is the rate; its authors advise a third to a tenth of AdamW's.
    "lion": OptimizerKind("lion-pytorch", "lion_pytorch", "Lion", adamw_factor=0.1),
    # Without scaling by the size of the weights, because new hypernetworks are near zero.
    "adafactor": OptimizerKind(
        "transformers",
        "transformers.optimization",
        "Adafactor",
        {"relative_step": False, "scale_parameter": False, "warmup_init": False},
    ),
    # Its steps are as long as the gradients, which max_grad_norm limits.
    "sgd": OptimizerKind("", "torch.optim", "SGD", {"momentum": 0.9}, adamw_factor=1000.0),
}


def auto_learning_rate(name: str, method: str, width: int = FULL_WIDTH, *, texts: bool = False) -> float:
    """Return the usual learning rate of an optimizer.

    Args:
        name: Name of the optimizer.
        method: "hypernetwork", "embedding" or "lora".
        width: Width of the model's widest self-attention. An embedding is in the text encoder, so its rate is the same.
        texts: The model is a language model.
    """
    kind = OPTIMIZERS[name]
    if kind.learning_rate is not None:
        return kind.learning_rate
    factor = 1.0 if method == "embedding" else min(FULL_WIDTH / width, _MOST_FACTOR)
    return _ADAMW_RATES[method] * kind.adamw_factor * factor * (_TEXT_FACTOR if texts else 1.0)


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], rate: float, decay: float) -> optim.Optimizer:
    """Make the optimizer, or raise MissingExtraError."""
    kind = OPTIMIZERS[name]
    optimizer: optim.Optimizer = kind.load()(parameters, lr=rate, weight_decay=decay, **kind.options)
    return optimizer


def set_learning_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def check_state(optimizer: optim.Optimizer, values: Iterable[Tensor], state_dict: Mapping[str, Any]) -> None:
    """Try a state on copies of the parameters: torch notices a mismatch only at the next step, or never.

    Args:
        optimizer: One of `make_optimizer`. It is not changed.
        values: The values of its parameters.
        state_dict: The state to check.

    Raises:
        ValueError: The optimizer cannot continue from the state.
    """
    name = next((name for name, kind in OPTIMIZERS.items() if kind.name == type(optimizer).__name__), None)
    if name is None:
        return
    copies = [nn.Parameter(value.detach().clone()) for value in values]
    trial = make_optimizer(name, copies, 1e-4, 0.0)
    try:
        for parameter in copies:
            parameter.grad = torch.zeros_like(parameter)
        trial.step()
        _check_groups(trial.state_dict()["param_groups"], state_dict["param_groups"])
        _check_tensors(trial.state_dict()["state"], state_dict["state"])
        trial.load_state_dict(copy.deepcopy(dict(state_dict)))
        trial.step()
    except Exception as error:  # each optimizer fails in its own way
        raise ValueError(str(error) or type(error).__name__) from error
    if not all(bool(torch.isfinite(parameter).all()) for parameter in copies):
        raise ValueError("The values are not finite.")


def _check_groups(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """Raise ValueError for a setting of another type; other releases of torch may have more or fewer settings."""
    for ours, theirs in zip(expected, found, strict=True):
        for key in ours.keys() & theirs.keys():
            if _shape(ours[key]) != _shape(theirs[key]):
                raise ValueError(f"Setting {key!r} has an invalid value: {str(theirs[key])[:80]!r}.")


def _check_tensors(expected: Mapping[int, Mapping[str, Any]], found: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise ValueError for a tensor of another shape or kind, which torch would convert silently."""
    for index, values in found.items():
        for key, theirs in values.items():
            ours = expected[index].get(key)
            if not isinstance(theirs, Tensor) or not isinstance(ours, Tensor):
                continue
            if not theirs.is_complex() and (theirs.ndim == 0 or ours.ndim == 0):  # Prodigy keeps zeros as one value
                continue
            if theirs.shape != ours.shape or theirs.is_floating_point() != ours.is_floating_point():
                raise ValueError(f"{key!r} of parameter {index} is {str(theirs.dtype)[6:]} {list(theirs.shape)}.")


def _shape(value: object) -> object:
    """Return the structure of a setting without its numbers."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, float)):
        return "number"
    if isinstance(value, (list, tuple)):
        return tuple(_shape(each) for each in value)
    return type(value)
