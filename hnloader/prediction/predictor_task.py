"""Train a predictor: it reads some examples of a style, and the model learns from another one with what it predicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hnloader.attention import find_sites
from hnloader.prediction.encoder_lesson import EncoderLesson
from hnloader.prediction.model_sample import check_model, sample_of
from hnloader.prediction.predictor import ENCODERS, Predictor, spread_of
from hnloader.prediction.predictor_adapter import PredictorAdapter
from hnloader.prediction.predictor_file import About, load_predictor
from hnloader.prediction.style_data import REFERENCES, StyleData
from hnloader.prediction.style_folders import Style
from hnloader.scopes import Scope
from hnloader.training import html, schema
from hnloader.training.config import Config
from hnloader.training.sampler import split
from hnloader.training.task import Task, resolved
from hnloader.units import counted

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_VALIDATION_STYLES = 12
_LESSON_WEIGHT = 3.0


class PredictorTask(Task):
    """Folders of styles, and the model that they are for.

    Args:
        data: The styles and the model.

    Attributes:
        data: The styles and the model.
        styles: The training styles.
        validation_styles: The validation styles.
        predictor: The predictor.
    """

    data_name = "styles"
    adapter: PredictorAdapter

    def __init__(self, data: StyleData[Any, Any]) -> None:
        side, folders = data.side, data.folders
        self.config = config = data.config = resolved(data.config, find_sites(side.network))
        self.data, self.model = data, side.model
        self.model_hash, self.data_hash = data.model_hash, folders.fingerprint()
        self.device, self.dtype, self.notes = side.device, data.dtype, tuple(folders.notes)
        training, validation = split(len(folders.styles), config.data.validation_split, config.seed)
        self.styles = [folders.styles[index] for index in training]
        self.validation_styles = [folders.styles[index] for index in validation[:_MOST_VALIDATION_STYLES]]
        self.predictor, previous_steps = self._first_predictor()
        self._lesson = self._new_lesson() if config.predictor.encoder_batch_size else None
        self.adapter = PredictorAdapter(
            self.predictor,
            side.network,
            sample_of(side),
            self._about,
            previous_steps=previous_steps,
            others=self._lesson.guess.parameters() if self._lesson else (),
        )
        self._losses: dict[str, float] = {}

    def _first_predictor(self) -> tuple[Predictor, int]:
        """Return the predictor to train, which is new or that of `start_from`, and the steps it has had."""
        config, side = self.config, self.data.side
        if config.start_from:
            stored = load_predictor(config.start_from)
            note = check_model(stored, side)
            self.notes = (*self.notes, *((note,) if note else ()))
            return stored.predictor.requires_grad_(True).train().to(side.device), stored.about.step
        torch.manual_seed(config.seed)
        made = Predictor(_scopes(config, side.network), side.input_size, config.predictor.design, side.kind)
        made = made.to(side.device)
        made.encoder.calibrate(self.data.references(self.data.usual(self.styles)))
        return made, 0

    def _new_lesson(self) -> EncoderLesson:
        """Return the lesson of the encoder, the same for each run with these settings and data."""
        torch.manual_seed(self.config.seed)
        usual, design, side = self.data.usual(self.styles), self.predictor.design, self.data.side
        captions = self.data.captions(usual)
        features = ENCODERS[side.kind](side.input_size, design.style_size, design.hidden_size)
        lesson = EncoderLesson(features, design.style_size, captions.shape[1]).to(side.device)
        lesson.calibrate(self.data.references(usual), captions)
        return lesson

    @property
    def has_validation(self) -> bool:
        """See `Task`."""
        return bool(self.validation_styles)

    @property
    def amount(self) -> str:
        """See `Task`."""
        return counted(len(self.styles), "style")

    def loss(self, index: int) -> Tensor:
        """See `Task`."""
        batch = self.data.training(index + 1, self.styles)
        sides = self.predictor.sides(self.predictor.read(batch.references))
        with self.adapter.hooks.applied(sides):
            loss = self.data.loss(batch.target)
        if self._lesson is None:
            return loss
        lesson = _LESSON_WEIGHT * self._lesson_loss(self._lesson, index + 1)
        # Its gradient counts, but not its value: the loss that is shown stays that of the model.
        return loss + (lesson - lesson.detach())

    def _lesson_loss(self, lesson: EncoderLesson, step: int) -> Tensor:
        given = self.data.lesson(step, self.styles)
        styles = self.predictor.encoder.read(given.references)
        return lesson.loss(styles[given.styles], given.captions, given.values)

    def validation_loss(self) -> float:
        """See `Task`; the losses without a file and with another style's are kept for the report."""
        found: dict[str, list[float]] = {"of the style": [], "of another style": [], "none": []}
        for batch in self.data.validation(self.validation_styles or self.styles[:2]):
            emitted = self.predictor.read(batch.references)
            sides = self.predictor.sides(emitted), self.predictor.sides(emitted.rolled()), None
            for values, given in zip(found.values(), sides, strict=True):
                with self.adapter.hooks.applied(given):
                    values.append(float(self.data.loss(batch.target)))
        self._losses = {name: sum(values) / len(values) for name, values in found.items()}
        return self._losses["of the style"]

    def preview(self, folder: Path, step: int) -> Sequence[Image] | Sequence[str]:
        """See `Task`; each preview is of another style."""
        made = [
            (style, self.predictor.hypernetwork(self.predictor.read(self._references(style).unsqueeze(0))))
            for style in self._shown_styles
        ]
        return self.data.preview(made, folder, step)

    def report(self, folder: Path) -> Iterator[str]:
        """See `Task`."""
        yield from self.data.previews_section(folder)
        if self._losses:
            rows = [(f"hypernetwork {name}" if name != "none" else name, loss) for name, loss in self._losses.items()]
            yield html.section("Validation loss by hypernetwork", html.table(rows))
        for style in self._shown_styles:
            yield html.section(f"Style {style.name}", self.data.figures(style.examples[:REFERENCES]))

    @property
    def _shown_styles(self) -> Sequence[Style[Any]]:
        return (self.validation_styles or self.styles)[: self.config.previews.count]

    def _references(self, style: Style[Any]) -> Tensor:
        return self.data.references(style.examples[:REFERENCES])

    @torch.no_grad()
    def _about(self, step: int) -> About:
        return About(
            model=self.model.name,
            resolution=self.data.resolution,
            step=step,
            styles=len(self.styles),
            spread=self._usual_spread() if self.validation_styles else 0.0,
            training=schema.plain(self.config),
        )

    def _usual_spread(self) -> float:
        """Return a spread halfway between that of the examples of one style and that of different styles."""
        values = [self._references(style) for style in self.validation_styles]
        within = statistics.median(spread_of(self.predictor.read(each.unsqueeze(1))) for each in values)
        between = spread_of(self.predictor.read(torch.stack([each[0] for each in values]).unsqueeze(1)))
        return (within + between) / 2


def _scopes(config: Config, network: nn.Module) -> Sequence[Scope]:
    """Return the scopes of the hypernetworks: the model's widths, or its layers."""
    sites = find_sites(network)
    if not config.predictor.design.per_layer:
        return [Scope(width) for width in sorted({site.width for site in sites})]
    return [Scope.of(site.width, [site.index], site.kind) for site in sites]
