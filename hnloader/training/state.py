"""The saved state of a training run: one safetensors file with everything that a resumed training run needs.

The tensors are `weights.<n>`, `ema.<n>` and `optimizer.<n>.<key>`; the key of a nested mapping is `<outer>.<inner>`.
The rest is JSON in the header. No random state is saved: the data of a step follows from the seed (see `sampler`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn, optim

from hnloader.errors import CorruptFileError, HypernetworkError
from hnloader.files import replacing
from hnloader.training.json_values import problem_of
from hnloader.training.optimizers import check_state

_NAME = re.compile(r"state-(\d{8})\.safetensors")
_KEY = "hnloader.training"
_ADVICE = "Use the same settings, or start again with --restart."


@dataclass
class State:
    """The progress of a training run.

    Attributes:
        step: Finished steps.
        config: The settings, as `schema.plain` gives them.
        best: The lowest validation loss and its step.
        validations_since_best: Validations since then.
        loss: Running mean of the training loss; None before the first step.
        seconds: Training time over all runs.
        history: One entry per validation.
        scaler: The state of the loss scaler, for float16.
        model: A hash of the model.
        data: A hash of the data, such as images and captions.
        previous_steps: The steps of the file that the training started from.
        initial_loss: The loss at fixed noise before the first step; None without validation.
    """

    step: int = 0
    config: dict[str, object] = field(default_factory=dict)
    best: tuple[float, int] | None = None
    validations_since_best: int = 0
    loss: float | None = None
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    data: str = ""
    previous_steps: int = 0
    initial_loss: float | None = None


@dataclass
class _Optimizer:
    """The optimizer in a saved state, without its tensors."""

    kind: str
    scalars: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]


def save_state(
    folder: Path,
    state: State,
    parameters: list[nn.Parameter],
    ema: list[Tensor] | None,
    optimizer: optim.Optimizer,
    limit: int,
) -> Path:
    """Write the state of this step and remove all but the newest `limit`.

    Raises:
        HypernetworkError: The file cannot be written. Older states are unchanged.
    """
    tensors = {f"weights.{index}": parameter.detach() for index, parameter in enumerate(parameters)}
    tensors |= {f"ema.{index}": tensor for index, tensor in enumerate(ema or [])}
    described = optimizer.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in described["state"].items():
        for key, value in _flat(values):
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    about = dataclasses.asdict(state)
    about["optimizer"] = {"kind": type(optimizer).__name__, "scalars": scalars, "groups": described["param_groups"]}
    path = folder / f"state-{state.step:08d}.safetensors"
    with _writing(folder), replacing(path) as temporary:
        save_file(
            {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()},
            temporary,
            metadata={_KEY: json.dumps(about, default=_plain)},
        )
    with contextlib.suppress(OSError, HypernetworkError):  # the next call tries again
        for old in states(folder)[:-limit]:
            old.unlink(missing_ok=True)
    return path


def states(folder: Path) -> list[Path]:
    """Return the saved states, oldest first, or raise HypernetworkError for an unreadable folder."""
    try:
        return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise HypernetworkError(f"{folder} cannot be read: {error.strerror or error}.") from error


def load_state(
    path: Path, parameters: list[nn.Parameter], ema: list[Tensor] | None, optimizer: optim.Optimizer
) -> State:
    """Set the weights, their average and the optimizer; an error changes none of them.

    Raises:
        CorruptFileError: The file is damaged.
        HypernetworkError: The file was made with other settings.
    """
    tensors, about = _read(path)
    described = about.pop("optimizer")
    if described["kind"] != type(optimizer).__name__:
        raise HypernetworkError(
            f"{path}: found the optimizer {described['kind']}, expected {type(optimizer).__name__}. {_ADVICE}"
        )
    weights = _matching(path, tensors, "weights", parameters)
    averages = [] if ema is None else _matching(path, tensors, "ema", ema)
    state_dict: dict[str, Any] = {"state": {}, "param_groups": described["groups"]}
    try:
        for index, scalars in described["scalars"].items():
            for key, value in scalars.items():
                _put(state_dict["state"].setdefault(int(index), {}), key, value)
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                _put(state_dict["state"].setdefault(int(index), {}), key, tensor)
        check_state(optimizer, [new.to(old) for new, old in zip(weights, parameters, strict=True)], state_dict)
        optimizer.load_state_dict(state_dict)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise HypernetworkError(f"{path}: the state of its optimizer does not fit: {error} {_ADVICE}") from error
    with torch.no_grad():
        for new, old in zip([*weights, *averages], [*parameters, *(ema or [])], strict=True):
            old.copy_(new)
    about["best"] = tuple(about["best"]) if about["best"] else None
    return State(**{field.name: about[field.name] for field in dataclasses.fields(State)})


def saved_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a saved state."""
    settings: dict[str, Any] = _read(path)[1]["config"]
    return settings


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
        tensors = load_file(path)
    except OSError as error:
        raise HypernetworkError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"{path}: the saved training state is damaged ({error}). Resume from another state, or use --restart."
        ) from error
    problem = _problem(about)
    if problem:
        raise CorruptFileError(f"{path} is damaged: {problem}. Resume from another state, or use --restart.")
    return tensors, about


def _problem(about: Any) -> str:
    """Return the first invalid value of a state's description, "" if all are valid."""
    problem = problem_of(State, about) or problem_of(_Optimizer, about.get("optimizer"))
    if not problem and not all("step" in entry for entry in about["history"]):
        return "an entry of the history has no step"
    return problem


def _matching(path: Path, tensors: dict[str, Tensor], kind: str, targets: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of a kind, with the shapes and types of their targets."""
    found = [tensors[name] for index in range(len(targets)) if (name := f"{kind}.{index}") in tensors]
    fits = len(found) == len(targets) and all(
        new.shape == old.shape and new.dtype == old.dtype for new, old in zip(found, targets, strict=True)
    )
    if not fits or f"{kind}.{len(targets)}" in tensors:
        raise HypernetworkError(f"{path}: the {kind} are for another architecture. {_ADVICE}")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return every value with its key; bitsandbytes nests a mapping in the state of a parameter."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(values: dict[str, Any], key: str, value: object) -> None:
    """Set the value of a key of `_flat`."""
    *outer, last = key.split(".")
    for each in outer:
        values = values.setdefault(each, {})
        if not isinstance(values, dict):
            raise ValueError(f"{each!r} is a value and a mapping.")
    values[last] = value


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(f"The settings of the optimizer contain a {type(value).__name__}.")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HypernetworkError(f"{folder}: cannot write the training state ({reason}).") from error
