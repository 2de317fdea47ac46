"""The adapter that is trained, a hypernetwork, an embedding or a LoRA, as the trainer sees it."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from hnloader.pipelines import Model
from hnloader.training import schema
from hnloader.training.cache import Cache
from hnloader.training.config import Config
from hnloader.training.denoiser import EncodedText

Context = contextlib.AbstractContextManager[object]


class Adapter(ABC):
    """A trained hypernetwork, embedding or LoRA.

    Attributes:
        parameters: The trained parameters, float32.
        previous_steps: The steps of the file that it starts from.
    """

    parameters: list[nn.Parameter]
    previous_steps: int

    def attached(self) -> Context:
        """Stay attached to the model while this is active, so that `enabled` is fast."""
        return contextlib.nullcontext()

    @abstractmethod
    def enabled(self, *, training: bool) -> Context:
        """Apply the adapter to the model; with `training`, with gradients and dropout."""

    def disabled(self) -> Context:
        """Within `enabled`: take the effect of the adapter away."""
        return contextlib.nullcontext()

    def texts(self, captions: Sequence[str], cache: Cache) -> list[EncodedText]:
        """Encode captions, with gradients if the text is what is trained."""
        return [cache.text(caption) for caption in captions]

    @abstractmethod
    def save(self, path: Path, step: int, model: Model) -> None:
        """Write the file atomically."""


def settings_text(config: Config) -> str:
    """Return the settings as JSON, for the metadata of the output."""
    return json.dumps(schema.plain(config), sort_keys=True)


def step_count(value: object) -> int:
    """Return the steps in a file's metadata, 0 for anything else."""
    return value if type(value) is int and value >= 0 else 0
