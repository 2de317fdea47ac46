"""The adapter that is trained, a hypernetwork, an embedding or a LoRA, as the trainer sees it."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from torch import nn

from hnloader.training import schema
from hnloader.training.config import Config

Context = contextlib.AbstractContextManager[object]


class NamedModel(Protocol):
    """The name of a model in the metadata of an output."""

    @property
    def name(self) -> str:
        """Name of the folder or file."""

    @property
    def hash(self) -> str | None:
        """First 10 hex digits of a checkpoint's sha256, if the model is one."""


class Adapter(ABC):
    """A trained hypernetwork, embedding or LoRA.

    Attributes:
        parameters: The trained parameters, float32.
        previous_steps: The steps of the file that it starts from.
        notes: Messages for the user about that file.
        has_strength: `at` changes its strength.
    """

    parameters: list[nn.Parameter]
    previous_steps: int
    notes: tuple[str, ...] = ()
    has_strength = False

    def attached(self) -> Context:
        """Stay attached to the model while this is active, so that `enabled` is fast."""
        return contextlib.nullcontext()

    @abstractmethod
    def enabled(self, *, training: bool) -> Context:
        """Apply the adapter to the model; with `training`, with gradients and dropout."""

    def disabled(self) -> Context:
        """Within `enabled`: take the effect of the adapter away."""
        return contextlib.nullcontext()

    def at(self, strength: float) -> Context:
        """Within `enabled`: apply it at a strength, if it has one."""
        return contextlib.nullcontext()

    @abstractmethod
    def save(self, path: Path, step: int, model: NamedModel) -> None:
        """Write the file atomically."""


def settings_text(config: Config) -> str:
    """Return the settings as JSON, for the metadata of the output."""
    return json.dumps(schema.plain(config), sort_keys=True)


def step_count(value: object) -> int:
    """Return the steps in a file's metadata, 0 for anything else."""
    return value if type(value) is int and value >= 0 else 0
