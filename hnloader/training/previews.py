"""Images made during the training: always the same prompts and seeds, so that what changes is what was learned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hnloader.errors import HypernetworkError
from hnloader.files import replacing
from hnloader.grids import labeled_grid
from hnloader.images import OWN_PREVIEWS, read_image
from hnloader.training.adapters import Adapter
from hnloader.training.config import PreviewConfig

if TYPE_CHECKING:
    from PIL.Image import Image

_NAME = re.compile(r"step-(\d{8})-(\d+)\.png")
# Frames of the animation: a long training is thinned out to about as many.
_MOST_FRAMES = 40
_FRAME_MS, _LAST_FRAME_MS = 250, 2000


def render(pipeline: Any, adapter: Adapter, prompts: Sequence[str], config: PreviewConfig) -> list[Image]:
    """One image per prompt with what is trained; the model is as it was afterwards."""
    images: list[Image] = []
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad(), adapter.acting(training=False):
        for index, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(config.seed + index)
            made = pipeline(
                prompt,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                generator=generator,
            )
            images.append(made.images[0])
    return images


def keep(images: Sequence[Image], folder: Path, step: int) -> None:
    """Write the images of a step.

    Raises:
        HypernetworkError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        with replacing(folder / f"step-{step:08d}-{index}.png") as temporary:
            image.save(temporary, format="PNG")


def strip(folder: Path, prompts: Sequence[str]) -> tuple[Path, Path] | None:
    """Tile all previews of a folder: an image with a row per prompt and a column per step, and an animation.

    Returns:
        The paths of both; None when there are no previews.
    """
    steps = _steps(folder)
    if not steps:
        return None
    every = -(-len(steps) // _MOST_FRAMES)
    chosen = [step for index, step in enumerate(steps) if index % every == 0 or step == steps[-1]]
    rows = range(len(prompts))
    images = [[_opened(folder / f"step-{step:08d}-{row}.png") for step in chosen] for row in rows]
    tiled, animation = folder / "previews.png", folder / "previews.gif"
    columns = [f"step {step:,}" for step in chosen]
    with replacing(tiled) as temporary:
        labeled_grid(images, columns=columns, rows=list(prompts)).save(temporary, format="PNG")
    frames: list[Image] = []
    for column, label in enumerate(columns):
        frames.append(labeled_grid([[row[column] for row in images]], columns=list(prompts), rows=[label]))
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    with replacing(animation) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return tiled, animation


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted({int(match[1]) for match in found if match is not None})


def _opened(path: Path) -> Image:
    try:
        return read_image(path, OWN_PREVIEWS).image.convert("RGB")
    except HypernetworkError as error:
        raise OSError(f"{path} is damaged ({error}). Remove it") from error
