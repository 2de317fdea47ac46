"""The part of a predictor's training that depends on the kind of examples: batches, losses and previews."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Generator, Tensor

from hnloader.network import Hypernetwork
from hnloader.prediction.model_side import ModelSide
from hnloader.prediction.style_folders import Style, StyleFolders
from hnloader.training.config import Config
from hnloader.training.sampler import generator_for, random_below

if TYPE_CHECKING:
    from PIL.Image import Image

Example = TypeVar("Example")
Target = TypeVar("Target")

REFERENCES = 4  # examples of a style that predict it in a validation and a preview
VALIDATION_TARGETS = 2  # examples of each style that validate
_CALIBRATION_STYLES = 100
_LESSON_EXAMPLES = 3  # other examples of a style that its encoder learns from in a step


@dataclass(frozen=True)
class StyleBatch(Generic[Target]):
    """A batch in which each row has another style.

    Attributes:
        references: The values of the examples to predict from, [rows, examples, ...]; see `StyleValues`.
        target: What the model sees with the predicted hypernetworks.
    """

    references: Tensor
    target: Target


@dataclass(frozen=True)
class Lesson:
    """The examples that an encoder learns from in a step; see `EncoderLesson`.

    Attributes:
        references: The values of the examples of each style, [styles, examples, ...].
        styles: For each other example, the index of its style.
        captions: Their captions, [others, numbers].
        values: Their values, [others, ...].
    """

    references: Tensor
    styles: Tensor
    captions: Tensor
    values: Tensor


class StyleData(ABC, Generic[Example, Target]):
    """The styles of a training run and their model. Everything random follows from the seed and the step.

    Args:
        config: Checked settings.
        side: The model.
        folders: The styles.

    Attributes:
        model_hash: Hash of the model's weights.
        dtype: Data type of the model.
        resolution: See `About`.
    """

    model_hash: str
    dtype: torch.dtype
    resolution: int

    def __init__(self, config: Config, side: ModelSide, folders: StyleFolders[Example]) -> None:
        self.config, self.side, self.folders = config, side, folders

    def drawn(
        self, name: str, step: int, styles: Sequence[Style[Example]], count: int
    ) -> tuple[Generator, list[tuple[list[Example], list[Example]]]]:
        """Return the random numbers of a step, and examples of random styles.

        Args:
            name: Name of the random numbers.
            step: The step.
            styles: Styles to choose from.
            count: Number of styles.

        Returns:
            The random numbers, and for each style the examples to predict from, as many of each, and its others.
        """
        random = generator_for(self.config.seed, name, step)
        chosen = [styles[random_below(random, len(styles))] for _ in range(count)]
        most = min(self.config.predictor.most_examples, *(len(style.examples) - 1 for style in chosen))
        used = 1 + random_below(random, most)
        pairs = []
        for style in chosen:
            order = torch.randperm(len(style.examples), generator=random).tolist()
            examples = [style.examples[index] for index in order]
            pairs.append((examples[:used], examples[used:]))
        return random, pairs

    def lesson(self, step: int, styles: Sequence[Style[Example]]) -> Lesson:
        """Return what the encoder learns from in a step."""
        _, pairs = self.drawn("lesson", step, styles, self.config.predictor.encoder_batch_size)
        others = [(row, each) for row, (_, rest) in enumerate(pairs) for each in rest[:_LESSON_EXAMPLES]]
        examples = [example for _, example in others]
        return Lesson(
            torch.stack([self.references(given) for given, _ in pairs]),
            torch.tensor([row for row, _ in others], device=self.side.device),
            self.captions(examples),
            self.references(examples),
        )

    def validation_references(self, styles: Sequence[Style[Example]]) -> Tensor:
        """Return the values of the first examples of validation styles, as many of each, on the device."""
        least = min(min(REFERENCES, len(style.examples) - 1) for style in styles)
        return torch.stack([self.references(style.examples[:least]) for style in styles])

    def validation_targets(self, styles: Sequence[Style[Example]], number: int) -> list[Example]:
        """Return an example of each validation style that it is not predicted from; `number` counts from 1."""
        least = min(min(REFERENCES, len(style.examples) - 1) for style in styles)
        return [style.examples[-min(number, len(style.examples) - least)] for style in styles]

    def prompt(self, index: int, own: str) -> str:
        """Return the prompt of a preview: one of the settings, else that of the style."""
        prompts = self.config.previews.prompts
        return prompts[index % len(prompts)] if prompts else own

    def usual(self, styles: Sequence[Style[Example]]) -> list[Example]:
        """Return a training example of each of the first styles."""
        return [style.examples[0] for style in styles[:_CALIBRATION_STYLES]]

    @abstractmethod
    def training(self, step: int, styles: Sequence[Style[Example]]) -> StyleBatch[Target]:
        """Return the batch of a step."""

    @abstractmethod
    def validation(self, styles: Sequence[Style[Example]]) -> list[StyleBatch[Target]]:
        """Return the batches of validation styles, which are always the same."""

    @abstractmethod
    def references(self, examples: Sequence[Example]) -> Tensor:
        """Return the values of examples to predict from, [examples, ...], on the device."""

    @abstractmethod
    def captions(self, examples: Sequence[Example]) -> Tensor:
        """Return what the captions of examples tell, [examples, numbers], on the device; [examples, 0] without them."""

    @abstractmethod
    def loss(self, target: Target) -> Tensor:
        """Return the mean loss of the model."""

    @abstractmethod
    def preview(
        self, made: Sequence[tuple[Style[Example], Hypernetwork]], folder: Path, step: int
    ) -> Sequence[Image] | Sequence[str]:
        """Write a preview of each style with its hypernetwork into a folder."""

    @abstractmethod
    def previews_section(self, folder: Path) -> Iterator[str]:
        """Yield the section of the report with the previews in a folder."""

    @abstractmethod
    def figures(self, examples: Sequence[Example]) -> str:
        """Return examples as HTML."""
