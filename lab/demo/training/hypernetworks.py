"""Third stage: hypernetworks, each towards a style that the UNet does not know. Only the hypernetwork learns.

The images are the same scenes with the same captions, painted in the style: all that the captions don't say, the
hypernetwork has to bring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from hnloader.attention import attach
from hnloader.demo.scenes import ByteArray, Scene, lay_out
from hnloader.demo.styles import paint
from hnloader.network import Architecture, Hypernetwork
from hnloader.training.initialization import initialize
from lab.demo.training.common import Budget, Trainer
from lab.demo.training.text import TEXT_WIDTH
from lab.demo.training.unet import UNET_WIDTHS, NoisePrediction, encode_scenes

WIDTHS = tuple(sorted({*UNET_WIDTHS, TEXT_WIDTH}))


@dataclass(frozen=True)
class StyleRecipe:
    """A style and the architecture of its hypernetwork."""

    style: str
    architecture: Architecture


RECIPES: dict[str, StyleRecipe] = {
    "outline": StyleRecipe("outline", Architecture((1, 2, 1))),
    "halftone": StyleRecipe("halftone", Architecture((1, 2, 1), activation="mish", norm=True)),
}


def painter(style: str) -> Callable[[Scene, np.random.Generator], ByteArray]:
    """Return a function that draws a scene in `style`."""

    def draw_styled(scene: Scene, rng: np.random.Generator) -> ByteArray:
        return paint(style, *lay_out(scene, rng))

    return draw_styled


def train_hypernetwork(
    folder: Path,
    pipeline: StableDiffusionPipeline,
    recipe: StyleRecipe,
    budget: Budget,
    *,
    batch: int = 16,
    rate: float = 2e-3,
    images: int = 4_000,
    seed: int = 0,
    report: Callable[[Hypernetwork], str] | None = None,
    report_every: int = 500,
) -> Hypernetwork:
    """Train one hypernetwork at strength 1 with the checkpoint `folder`/style-<name>.pt, from which it resumes.

    The weights of the float32 `pipeline` are frozen. Every `report_every` steps, the log gets the text that `report`
    makes of the hypernetwork, which is not attached then.

    Returns:
        The hypernetwork with its averaged weights; `metadata["step"]` says how long it was trained.
    """
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    hypernetwork = Hypernetwork.new(WIDTHS, recipe.architecture, name=recipe.style)
    initialize(hypernetwork, "Normal", seed)
    data = encode_scenes(pipeline.vae, images, seed + 100, painter(recipe.style))
    prediction = NoisePrediction(data, pipeline.tokenizer, pipeline.text_encoder, pipeline.unet, batch, seed)

    def loss(step: int) -> torch.Tensor:
        with attach(pipeline.unet, hypernetwork, 1.0):
            return prediction(step)

    steps = Trainer(
        {"hypernetwork": hypernetwork},
        loss,
        budget,
        folder / f"style-{recipe.style}.pt",
        rate,
        decay=0.99,
        save_every=200,
        report=None if report is None else lambda step: report(hypernetwork),
        report_every=report_every,
    ).run()
    hypernetwork.metadata.update(step=steps, name=recipe.style, weight_initialization="Normal")
    return hypernetwork
