"""Train a predictor: it reads some images of a style, and the model denoises another one with what it predicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hnloader.attention import attach, find_sites
from hnloader.pipelines import Model
from hnloader.prediction.model_sample import check_model, sample_of
from hnloader.prediction.predictor import Predictor, spread_of
from hnloader.prediction.predictor_adapter import PredictorAdapter
from hnloader.prediction.predictor_file import About, load_predictor
from hnloader.prediction.style_batches import StyleBatches
from hnloader.prediction.style_folders import Style, StyleFolders
from hnloader.scopes import Scope
from hnloader.training import html, schema
from hnloader.training.cache import Cache
from hnloader.training.config import Config
from hnloader.training.denoiser import Denoiser
from hnloader.training.image_report import figures_of, previews_section
from hnloader.training.previews import generate_image, save_previews, tile_previews
from hnloader.training.run_folder import run_folder
from hnloader.training.sampler import split
from hnloader.training.task import Task, with_learning_rate
from hnloader.units import counted

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_VALIDATION_STYLES = 12
# Images of a style in a preview, and in the report.
_REFERENCES = 4


class PredictorTask(Task):
    """Folders of styles, and a Stable Diffusion model.

    Args:
        config: Checked settings.
        denoiser: The model.
        folders: The styles.
        model: The name and the hash of the model, for the metadata of the output.

    Attributes:
        styles: The training styles.
        validation_styles: The validation styles.
        predictor: The predictor.
    """

    data_name = "styles"
    adapter: PredictorAdapter

    def __init__(self, config: Config, denoiser: Denoiser, folders: StyleFolders, model: Model) -> None:
        config = with_learning_rate(config, find_sites(denoiser.unet))
        self.config, self.denoiser, self.model = config, denoiser, model
        self.model_hash, self.data_hash = denoiser.fingerprint("unet"), folders.fingerprint()
        self.device, self.dtype, self.notes = denoiser.device, denoiser.dtype, tuple(folders.notes)
        training, validation = split(len(folders.styles), config.data.validation_split, config.seed)
        self.styles = [folders.styles[index] for index in training]
        self.validation_styles = [folders.styles[index] for index in validation[:_MOST_VALIDATION_STYLES]]
        multiple = denoiser.size_multiple
        self.resolution = max((config.data.resolution or denoiser.resolution) // multiple, 1) * multiple
        cache = Cache(run_folder(Path(config.output)) / "cache", denoiser, config.data, self.resolution)
        self._batches = StyleBatches(config, denoiser, cache)
        self.predictor, previous_steps = self._first_predictor()
        self.adapter = PredictorAdapter(
            self.predictor, denoiser.unet, sample_of(denoiser), self._about, previous_steps=previous_steps
        )
        self._losses: dict[str, float] = {}

    def _first_predictor(self) -> tuple[Predictor, int]:
        """Return the predictor to train, which is new or that of `start_from`, and the steps it has had."""
        config, denoiser = self.config, self.denoiser
        if config.start_from:
            stored = load_predictor(config.start_from)
            note = check_model(stored, denoiser)
            self.notes = (*self.notes, *((note,) if note else ()))
            return stored.predictor.requires_grad_(True).train().to(denoiser.device), stored.about.step
        torch.manual_seed(config.seed)
        channels = denoiser.vae.config.latent_channels
        made = Predictor(_scopes(config, denoiser), channels, config.predictor.design)
        return made.to(denoiser.device), 0

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
        batch = self._batches.training(index + 1, self.styles)
        sides = self.predictor.sides(self.predictor.read(batch.references))
        with self.adapter.hooks.applied(sides):
            return self.denoiser.losses(batch.target, self.config.snr_gamma).mean()

    def validation_loss(self) -> float:
        """See `Task`; the losses without a file and with another style's are kept for the report."""
        found: dict[str, list[float]] = {"of the style": [], "of another style": [], "none": []}
        for batch in self._batches.validation(self.validation_styles or self.styles[:2]):
            emitted = self.predictor.read(batch.references)
            sides = self.predictor.sides(emitted), self.predictor.sides(emitted.rolled()), None
            for values, given in zip(found.values(), sides, strict=True):
                with self.adapter.hooks.applied(given):
                    values.append(float(self.denoiser.losses(batch.target, self.config.snr_gamma).mean()))
        self._losses = {name: sum(values) / len(values) for name, values in found.items()}
        return self._losses["of the style"]

    def preview(self, folder: Path, step: int) -> Sequence[Image]:
        """See `Task`; each image is of another style."""
        config, images, prompts = self.config.previews, [], []
        for index, style in enumerate(self._shown_styles):
            prompt = config.prompts[index % len(config.prompts)] if config.prompts else style.images[-1].caption or ""
            made = self.predictor.hypernetwork(self.predictor.read(self._references(style).unsqueeze(0)))
            with attach(self.denoiser.unet, made, 1.0), self.denoiser.loaded():
                images.append(generate_image(self.denoiser.pipeline, prompt, config.seed + index, config))
            prompts.append(f"{style.name}: {prompt}")
        save_previews(images, folder, step)
        tile_previews(folder, prompts)
        return images

    def report(self, folder: Path) -> Iterator[str]:
        """See `Task`."""
        yield from previews_section(folder)
        if self._losses:
            rows = [(f"hypernetwork {name}" if name != "none" else name, loss) for name, loss in self._losses.items()]
            yield html.section("Validation loss by hypernetwork", html.table(rows))
        for style in self._shown_styles:
            yield html.section(f"Style {style.name}", html.figures(figures_of(style.images[:_REFERENCES])))

    @property
    def _shown_styles(self) -> Sequence[Style]:
        return (self.validation_styles or self.styles)[: self.config.previews.count]

    def _references(self, style: Style) -> Tensor:
        return self._batches.references(style.images[:_REFERENCES]).to(self.device)

    @torch.no_grad()
    def _about(self, step: int) -> About:
        return About(
            model=self.model.name,
            resolution=self.resolution,
            step=step,
            styles=len(self.styles),
            spread=self._usual_spread() if self.validation_styles else 0.0,
            training=schema.plain(self.config),
        )

    def _usual_spread(self) -> float:
        """Return a spread halfway between that of the images of one style and that of different styles."""
        images = [self._references(style) for style in self.validation_styles]
        within = statistics.median(spread_of(self.predictor.read(each.unsqueeze(1))) for each in images)
        between = spread_of(self.predictor.read(torch.stack([each[0] for each in images]).unsqueeze(1)))
        return (within + between) / 2


def _scopes(config: Config, denoiser: Denoiser) -> Sequence[Scope]:
    """Return the scopes of the hypernetworks: the model's widths, or its layers."""
    if not config.predictor.design.per_layer:
        return [Scope(width) for width in sorted({site.width for site in find_sites(denoiser.unet)})]
    return [Scope.of(site.width, [site.index], site.kind) for site in find_sites(denoiser.unet)]
