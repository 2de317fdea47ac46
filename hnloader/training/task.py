"""The part of a training run that depends on the kind of model: the data, the loss of a batch and the previews.

`hnloader.training.trainer` has the loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hnloader.attention import AttentionSite
from hnloader.files import expanded
from hnloader.training.adapters import Adapter, NamedModel
from hnloader.training.config import Config
from hnloader.training.optimizers import FULL_WIDTH, auto_learning_rate

if TYPE_CHECKING:
    from PIL.Image import Image

_NARROW = 512  # models whose widest self-attention is below
_HIDDEN = 1024  # values of the hidden layer for a narrow model
# Muon learns less from single images, also from more of them in the same time (docs/dev/training-evidence.md).
_IMAGES_PER_STEP = 4


class Task(ABC):
    """A model with an adapter, and the data to train it on.

    Everything random follows from the seed and the number of a batch, so that a resumed training run sees the same
    data.

    Attributes:
        config: The settings, with the values for the model in place of those that mean "automatic".
        adapter: The adapter that is trained.
        model: Name and hash of the model, for the metadata of the output.
        model_hash: Hash of the model's weights. A saved state of another model is refused.
        data_hash: Hash of the data. Other data are reported after resuming.
        data_name: Name of the data in messages, such as "images".
        notes: Messages for the user about the data.
        device: Device of the model.
        dtype: Data type of the model. The loss is scaled for float16.
    """

    config: Config
    adapter: Adapter
    model: NamedModel
    model_hash: str
    data_hash: str
    data_name: str
    notes: Sequence[str]
    device: torch.device
    dtype: torch.dtype

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """True if some of the data are for validation only."""

    @property
    @abstractmethod
    def amount(self) -> str:
        """The amount of data, such as "20 images"."""

    @abstractmethod
    def loss(self, index: int) -> Tensor:
        """Return the mean loss of a batch of the endless sequence; `index` counts from 0. The adapter is enabled."""

    @abstractmethod
    def validation_loss(self) -> float:
        """Return the mean loss of the validation data, or of a part of the training data if there are none.

        It depends on the weights alone. The adapter is enabled, without gradients.
        """

    @abstractmethod
    def preview(self, folder: Path, step: int) -> Sequence[Image] | Sequence[str]:
        """Make the previews of a step and write them into a folder; raise HypernetworkError if that fails.

        The same prompts and seeds are used at each step.
        """

    @abstractmethod
    def report(self, folder: Path) -> Iterator[str]:
        """Yield the sections of the HTML report about the previews in a folder and about the data."""


def resolved(config: Config, sites: Iterable[AttentionSite]) -> Config:
    """Replace "auto" and what else depends on the model by the values for these attention layers."""
    width = max((site.width for site in sites if site.kind == "self"), default=FULL_WIDTH)
    continued = bool(config.start_from) and expanded(f"{config.start_from}.optim").is_file()
    optimizer = "adamw" if config.optimizer == "auto" and continued else config.optimizer_name
    rate = config.learning_rate
    if rate == "auto":
        rate = auto_learning_rate(optimizer, config.method, width, texts=bool(config.texts))
    hypernetwork = config.hypernetwork
    if not hypernetwork.layer_structure:
        structure = (1, 2 if config.texts or hypernetwork.scopes else _hidden_ratio(width), 1)
        hypernetwork = replace(hypernetwork, layer_structure=structure)
    batch_size, batches = _batches(config, width)
    return replace(
        config,
        optimizer=optimizer,
        learning_rate=rate,
        hypernetwork=hypernetwork,
        batch_size=batch_size,
        gradient_accumulation_steps=batches,
    )


def _batches(config: Config, width: int) -> tuple[int, int]:
    """Return the size of a batch and the number of batches per step."""
    together = 1 if config.texts or width >= _NARROW else _IMAGES_PER_STEP
    automatic = not (config.batch_size or config.texts)
    count = _IMAGES_PER_STEP // together if automatic else 1
    return config.batch_size or together, config.gradient_accumulation_steps or count


def _hidden_ratio(width: int) -> int:
    """Return the ratio of the hidden layer for a model with this widest self-attention.

    One pair of networks serves all layers of a width. Narrow ones do not fit a style (docs/dev/training-evidence.md).
    """
    return min(max(round(_HIDDEN / width), 2), 8)
