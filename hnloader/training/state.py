"""The state of a training on disk: everything from which it goes on, in one safetensors file written atomically.

Tensors are named `weights.<n>`, `average.<n>` and `optimizer.<n>.<key>`, where the key of a mapping within a mapping
is `<outer>.<inner>`; the rest is JSON in the header. Nothing random is in it: what a step sees follows from the seed
and the step (see `sampling`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim

from hnloader.errors import CorruptFileError, HypernetworkError
from hnloader.files import replacing
from hnloader.training.optimizers import check_state

_NAME = re.compile(r"state-(\d{8})\.safetensors")
_KEY = "hnloader.training"


@dataclass
class State:
    """Where a training stands.

    Attributes:
        step: steps done.
        config: the configuration, as `schema.plain` gives it.
        best: the lowest held-out loss so far, and the step of it.
        bad: measurements since then.
        loss: running mean of the training loss, None before the first step.
        seconds: how long was trained, over all interruptions.
        history: one entry per measurement.
        scaler: of the losses, where the model computes in float16.
        model, images: hashes of the model's UNet and of the images; empty in states of older versions.
        before: steps that the file to start from had; 0 in states of older versions.
        first: the loss at fixed noise before the first step; None where it was not measured.
    """

    step: int = 0
    config: dict[str, object] = field(default_factory=dict)
    best: tuple[float, int] | None = None
    bad: int = 0
    loss: float | None = None
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    images: str = ""
    before: int = 0
    first: float | None = None


def save_state(
    folder: Path,
    state: State,
    parameters: list[nn.Parameter],
    average: list[Tensor] | None,
    optimizer: optim.Optimizer,
    keep: int,
) -> Path:
    """Write the state of this step and remove all but the newest `keep`.

    Raises:
        HypernetworkError: the disk is full or the folder not writable; older states stand untouched.
    """
    tensors = {f"weights.{index}": parameter.detach() for index, parameter in enumerate(parameters)}
    tensors |= {f"average.{index}": tensor for index, tensor in enumerate(average or [])}
    described = optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in described["state"].items():
        for key, value in _flat(values):
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    about = {
        "step": state.step,
        "config": state.config,
        "best": state.best,
        "bad": state.bad,
        "loss": state.loss,
        "seconds": state.seconds,
        "history": state.history,
        "scaler": state.scaler,
        "model": state.model,
        "images": state.images,
        "before": state.before,
        "first": state.first,
        "optimizer": {"kind": type(optimizer).__name__, "scalars": scalars, "groups": described["param_groups"]},
    }
    path = folder / f"state-{state.step:08d}.safetensors"
    with _readable(folder), replacing(path) as temporary:
        save_file(
            {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()},
            temporary,
            metadata={_KEY: json.dumps(about, default=_plain)},
        )
    # One that cannot be removed now is removed with the next: the state that was asked for is there.
    with contextlib.suppress(OSError, HypernetworkError):
        for old in states(folder)[:-keep]:
            old.unlink(missing_ok=True)
    return path


def states(folder: Path) -> list[Path]:
    """The saved states, oldest first.

    Raises:
        HypernetworkError: the folder is there and cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise HypernetworkError(f"{folder} cannot be read: {error.strerror or error}") from error


def load_state(
    path: Path, parameters: list[nn.Parameter], average: list[Tensor] | None, optimizer: optim.Optimizer
) -> State:
    """Set the weights, their average and the optimizer as they were saved.

    Raises:
        CorruptFileError: the file is damaged.
        HypernetworkError: it was made with other settings.
    """
    tensors, about = _read(path)
    if about["optimizer"]["kind"] != type(optimizer).__name__:
        raise HypernetworkError(
            f"{path} was made with the optimizer {about['optimizer']['kind']}, not {type(optimizer).__name__}; start "
            "anew, or set it as it was"
        )
    weights = _fitting(path, tensors, "weights", parameters)
    averages = None if average is None else _fitting(path, tensors, "average", average)
    described: dict[str, Any] = {"state": {}, "param_groups": about["optimizer"]["groups"]}
    try:
        for index, scalars in about["optimizer"]["scalars"].items():
            for key, value in scalars.items():
                _put(described["state"].setdefault(int(index), {}), key, value)
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                _put(described["state"].setdefault(int(index), {}), key, tensor)
        check_state(optimizer, [new.to(old) for new, old in zip(weights, parameters, strict=True)], described)
        optimizer.load_state_dict(described)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise HypernetworkError(f"{path}: its optimizer's state does not fit ({error}); start anew") from error
    with torch.no_grad():
        for new, old in zip([*weights, *(averages or [])], [*parameters, *(average or [])], strict=True):
            old.copy_(new)
    best = about["best"]
    best = tuple(best) if best else None
    plain = {key: about[key] for key in ("step", "config", "bad", "loss", "seconds", "history")}
    newer = {key: about[key] for key in _NEWER if about.get(key) is not None}
    return State(**plain, best=best, **newer)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a saved state."""
    config: dict[str, Any] = _read(path)[1]["config"]
    return config


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
        tensors = load_file(path)
    except OSError as error:
        raise HypernetworkError(f"{path} cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is no saved state of a training, or damaged ({error})") from error
    wrong = _wrong(about)
    if wrong:
        raise CorruptFileError(f"{path} is damaged: its {wrong}. Resume from another state, or start again")
    return tensors, about


def _wrong(about: Any) -> str:
    """Return what of a state's description is not of its type; empty where all is well."""
    if not isinstance(about, dict):
        return f"description is a {type(about).__name__}"
    for key, fits in _FIELDS.items():
        if key not in about and key not in _NEWER:
            return f"{key} is missing"
        if not fits(about.get(key)):
            return f"{key} is {json.dumps(about[key])[:80]}"
    return ""


def is_count(value: object) -> bool:
    """Return True for a whole number from 0 to what a 64-bit number holds."""
    return type(value) is int and 0 <= value < 1 << 63


def is_number(value: object) -> bool:
    """Return True for a float, or for a whole number that becomes one."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def is_history(value: object) -> bool:
    """Return True for a list of measurements, each with its step."""
    return isinstance(value, list) and all(
        isinstance(entry, dict) and "step" in entry and all(map(is_number, entry.values())) for entry in value
    )


def _is_best(value: object) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(is_number, value)))


def _is_optimizer(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    scalars, groups = value.get("scalars"), value.get("groups")
    return (
        isinstance(scalars, dict)
        and all(isinstance(each, dict) for each in scalars.values())
        and isinstance(groups, list)
        and all(isinstance(each, dict) for each in groups)
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": is_count,
    "config": lambda value: isinstance(value, dict),
    "best": _is_best,
    "bad": is_count,
    "loss": lambda value: value is None or is_number(value),
    "seconds": is_number,
    "history": is_history,
    "optimizer": _is_optimizer,
    "scaler": lambda value: value is None or isinstance(value, dict),
    "model": lambda value: value is None or isinstance(value, str),
    "images": lambda value: value is None or isinstance(value, str),
    "before": lambda value: value is None or is_count(value),
    "first": lambda value: value is None or is_number(value),
}


# What states of older versions lack.
_NEWER = ("scaler", "model", "images", "before", "first")


def _fitting(path: Path, tensors: dict[str, Tensor], kind: str, targets: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of a kind, which have the shapes and types of those that they are to be copied into."""
    found = [tensors[name] for index in range(len(targets)) if (name := f"{kind}.{index}") in tensors]
    fits = len(found) == len(targets) and all(
        new.shape == old.shape and new.dtype == old.dtype for new, old in zip(found, targets, strict=True)
    )
    if not fits or f"{kind}.{len(targets)}" in tensors:
        raise HypernetworkError(
            f"{path} holds {kind} of another architecture; start anew, or set the settings as they were"
        )
    return found


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its key; bitsandbytes has what is quantised in a mapping of its own within a parameter's."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _put(values: dict[str, Any], key: str, value: object) -> None:
    """The other way round."""
    *outer, last = key.split(".")
    for each in outer:
        values = values.setdefault(each, {})
        if not isinstance(values, dict):
            raise ValueError(f"{each} is a value and a mapping")
    values[last] = value


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} in the optimizer's settings")


@contextlib.contextmanager
def _readable(folder: Path) -> Any:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except safetensors.SafetensorError as error:
        raise HypernetworkError(f"cannot write the training's state into {folder}: {error}") from error
    except OSError as error:
        raise HypernetworkError(f"cannot write into {folder}: {error.strerror or error}") from error
