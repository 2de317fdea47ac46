"""Read and write predictors: one safetensors file with the weights, and JSON about them in its header."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from hnloader.errors import (
    ConfigError,
    CorruptFileError,
    HypernetworkError,
    OtherModelError,
    UnsupportedArchitectureError,
)
from hnloader.files import expanded, replacing
from hnloader.formats.safetensors import write_tensors
from hnloader.prediction.predictor import ENCODERS, Predictor
from hnloader.prediction.style_encoder import ExampleKind
from hnloader.prediction.text_encoder import TextEncoder
from hnloader.scopes import Scope
from hnloader.texts import shown
from hnloader.training import schema
from hnloader.training.json_values import problem_of
from hnloader.training.predictor_config import DesignConfig

KEY = "hnloader.predictor"
VERSION = 1
_MOST_INPUTS = 1 << 20
# Names of the tensors that describe the model, beside the weights.
_PROBE, _PROJECTIONS = "model.probe", "model.projections"


@dataclass(frozen=True)
class About:
    """The facts about a predictor in its file.

    Attributes:
        model: Name of its model.
        resolution: Side of the square images that it reads, in pixels; or the most tokens that it reads of a text at
            once.
        step: Steps of its training.
        styles: Number of styles that it was trained on.
        spread: Largest usual spread of the examples of one style; 0 if it was not measured.
        training: The settings of its training.
    """

    model: str = ""
    resolution: int = 0
    step: int = 0
    styles: int = 0
    spread: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSample:
    """A few numbers by which a predictor knows its model.

    Attributes:
        probe: The latents of a test image, [channels, height, width]; or the numbers of a test text, [numbers].
            float32.
        projections: Mean absolute weights of the projections for keys and values. [projections], float32.
    """

    probe: Tensor
    projections: Tensor


@dataclass(frozen=True)
class StoredPredictor:
    """A predictor and what its file says about it."""

    predictor: Predictor
    about: About
    sample: ModelSample
    path: Path


def save_predictor(path: Path, predictor: Predictor, about: About, sample: ModelSample) -> None:
    """Write a predictor in float16, atomically.

    Raises:
        HypernetworkError: The file cannot be written.
    """
    described = {
        "version": VERSION,
        "scopes": [str(scope) for scope in predictor.scopes],
        # The name of the size tells the kind of encoder.
        predictor.encoder.size_name: predictor.input_size,
        "design": schema.plain(predictor.design),
        "about": dataclasses.asdict(about),
    }
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in predictor.state_dict().items()}
    tensors |= {_PROBE: sample.probe.float().contiguous(), _PROJECTIONS: sample.projections.float().contiguous()}
    with replacing(path) as temporary:
        write_tensors(temporary, tensors, {"format": "pt", KEY: json.dumps(described)})


def load_predictor(path: str | os.PathLike[str]) -> StoredPredictor:
    """Read a predictor, in eval mode and without gradients.

    Raises:
        OtherModelError: The file is not a predictor.
        UnsupportedArchitectureError: A later version of hnloader wrote it.
        CorruptFileError: The file is damaged.
        HypernetworkError: The file cannot be read.
    """
    place = expanded(path)
    tensors, text = _read(place)
    try:
        described = json.loads(text)
        version = described["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(f"{place}: the description of the predictor is damaged. Download it again.") from error
    if version != VERSION:
        raise UnsupportedArchitectureError(
            f"{place}: found a predictor of version {shown(version, 20)}, and this hnloader reads version {VERSION}. "
            "Update hnloader, or train the predictor with this one."
        )
    try:
        return _built(place, tensors, described)
    except (ConfigError, KeyError, ValueError, TypeError) as error:
        raise CorruptFileError(f"{place}: the predictor is damaged. {error} Download it again.") from error


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors and the description."""
    if not path.is_file():
        raise HypernetworkError(f"{path}: found no such file. Name a predictor that `hnloader train-predictor` wrote.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise OtherModelError(
                f"{path}: found a safetensors file without a predictor. Name one that `hnloader train-predictor` wrote."
            )
        return load_file(path), text
    except OSError as error:
        raise HypernetworkError(f"{path} cannot be read: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise OtherModelError(
            f"{path}: found no safetensors file ({error}). Name a predictor that `hnloader train-predictor` wrote."
        ) from error


def _built(path: Path, tensors: dict[str, Tensor], described: Mapping[str, Any]) -> StoredPredictor:
    """Return the predictor, or raise ValueError, KeyError, TypeError or ConfigError for a damaged one."""
    design = schema.read(DesignConfig, described["design"])
    scopes = [Scope.parse(text) for text in described["scopes"]]
    kind: ExampleKind = "text" if TextEncoder.size_name in described else "image"
    size = described[ENCODERS[kind].size_name]
    if type(size) is not int or not 0 < size <= _MOST_INPUTS or not scopes:
        raise ValueError(f"Found {shown(size, 40)} as the size of its input.")
    problem = problem_of(About, described["about"])
    if problem:
        raise ValueError(f"{problem}.")
    sample = ModelSample(tensors.pop(_PROBE), tensors.pop(_PROJECTIONS))
    # The shapes come first: the declared sizes may be too large for the memory.
    with torch.device("meta"):
        expected = Predictor(scopes, size, design, kind).state_dict()
    wrong = [name for name in {*expected, *tensors} if not _same_shape(expected.get(name), tensors.get(name))]
    if wrong:
        raise ValueError(f"The tensor {shown(min(wrong), 80)} does not fit.")
    if not all(bool(value.isfinite().all()) for value in (*tensors.values(), sample.probe, sample.projections)):
        raise ValueError("Found values that are not finite.")
    predictor = Predictor(scopes, size, design, kind)
    predictor.load_state_dict({name: value.float() for name, value in tensors.items()})
    predictor.requires_grad_(False)
    return StoredPredictor(predictor.eval(), About(**described["about"]), sample, path)


def _same_shape(expected: Tensor | None, found: Tensor | None) -> bool:
    return expected is not None and found is not None and expected.shape == found.shape and found.is_floating_point()
