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
from hnloader.training.adapters import Adapter, NamedModel
from hnloader.training.config import Config
from hnloader.training.optimizers import FULL_WIDTH, auto_learning_rate

if TYPE_CHECKING:
    from PIL.Image import Image


class Task(ABC):
    """A model with an adapter, and the data to train it on.

    Everything random follows from the seed and the number of a batch, so that a resumed training run sees the same
    data.

    Attributes:
        config: The settings, with a number in place of the learning rate "auto".
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


def with_learning_rate(config: Config, sites: Iterable[AttentionSite]) -> Config:
    """Replace the learning rate "auto" by the number for a model with these attention layers."""
    if config.learning_rate != "auto":
        return config
    width = max((site.width for site in sites if site.kind == "self"), default=FULL_WIDTH)
    rate = auto_learning_rate(config.optimizer, config.method, width, texts=bool(config.texts))
    return replace(config, learning_rate=rate)
