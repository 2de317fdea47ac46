"""The frozen model of a predictor, for images or texts, and the examples that it reads."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from hnloader.errors import DatasetError
from hnloader.files import expanded
from hnloader.prediction.style_encoder import ExampleKind
from hnloader.training.adapters import NamedModel
from hnloader.training.dataset import SUFFIXES as IMAGE_SUFFIXES
from hnloader.training.text_dataset import SUFFIXES as TEXT_SUFFIXES
from hnloader.units import counted

Examples: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"

MOST_EXAMPLES = 20
_MOST_NOTES = 10


@dataclass
class StyleValues:
    """The values that a predictor reads of the examples of a style.

    Attributes:
        values: For each example, the latents of an image, [channels, height, width], or the numbers of a text,
            [numbers]. float32.
        digests: The sha256 of each file that was used.
        notes: Messages for the user.
    """

    values: list[Tensor] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class ModelSide(ABC):
    """The frozen model of a predictor.

    Attributes:
        kind: The kind of examples that it reads.
        model: Its name and hash.
        network: The module with the attention layers.
        input_size: The size of its values for an encoder: channels of latents, or numbers of a text.
        most_difference: The probes of the same model differ by less, as a share of their size.
        reads: The name of what a predictor reads of it, in messages.
        differs: What another model has in its place, in messages.
    """

    kind: ClassVar[ExampleKind]
    most_difference: ClassVar[float]
    reads: ClassVar[str]
    differs: ClassVar[str]
    model: NamedModel
    network: nn.Module
    input_size: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the model."""

    @abstractmethod
    def probe(self) -> Tensor:
        """Return its values of a test example, float32 on the CPU."""

    @abstractmethod
    def values_of(self, examples: Examples) -> StyleValues:
        """Return its values of the examples of a style; raise DatasetError if none is usable."""


def kind_of(examples: Examples) -> ExampleKind | None:
    """Return the kind of examples by the names of the files; None if there are neither images nor texts.

    Texts beside images are captions.
    """
    found: ExampleKind | None = None
    for path in _files_of(examples):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            return "image"
        if suffix in TEXT_SUFFIXES:
            found = "text"
    return found


def _files_of(examples: Examples) -> Iterator[Path]:
    for given in [examples] if isinstance(examples, (str, os.PathLike)) else examples:
        place = expanded(given)
        if place.is_dir():
            yield from (path for path in place.rglob("*") if not path.name.startswith("."))
        else:
            yield place


def files_to_read(examples: Examples, kind: ExampleKind) -> list[Path]:
    """Return the paths of the files or the single folder of examples; raise DatasetError if there are none."""
    given = [examples] if isinstance(examples, (str, os.PathLike)) else list(examples)
    if not given:
        raise DatasetError(f"{kind.capitalize()}s: found none. Give a folder or at least one {kind}.")
    return [expanded(each) for each in given]


def listed(problems: Sequence[str]) -> Iterator[str]:
    """Yield the first problems, and the number of the others."""
    yield from problems[:_MOST_NOTES]
    if len(problems) > _MOST_NOTES:
        yield f"{counted(len(problems) - _MOST_NOTES, 'more problem')}."


def label_of(examples: Examples, kind: ExampleKind) -> str:
    """Return the name of examples in messages."""
    return f"{examples}" if isinstance(examples, (str, os.PathLike)) else f"{kind.capitalize()}s"
