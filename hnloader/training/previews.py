"""Previews: images with the same prompts and seeds over the steps, so that only the adapter changes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
# A long training run is thinned out to about this number of frames.
_MAX_FRAMES = 40
_FRAME_MS, _LAST_FRAME_MS = 250, 2000


def generate_image(pipeline: Any, prompt: str, seed: int, config: PreviewConfig) -> Image:
    """Generate an image with the sampling settings of the previews."""
    generator = torch.Generator().manual_seed(seed)
    steps, guidance = config.num_inference_steps, config.guidance_scale
    output = pipeline(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=generator)
    image: Image = output.images[0]
    return image


def render_previews(
    pipeline: Any, adapter: Adapter, prompts: Sequence[str], config: PreviewConfig, strength: float = 1.0
) -> list[Image]:
    """Generate one image per prompt with the adapter, at a strength if it has one."""
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad(), adapter.enabled(training=False), adapter.at(strength):
        return [generate_image(pipeline, prompt, config.seed + index, config) for index, prompt in enumerate(prompts)]


def save_previews(images: Sequence[Image], folder: Path, step: int) -> None:
    """Write the images of a step, or raise HypernetworkError."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        with replacing(folder / f"step-{step:08d}-{index}.png") as temporary:
            image.save(temporary, format="PNG")


def save_strengths(
    by_strength: Mapping[float, Sequence[Image]], folder: Path, step: int, prompts: Sequence[str]
) -> None:
    """Write the grid of a step: a row for each prompt, a column for each strength."""
    columns = ["plain" if strength == 0 else f"strength {strength:g}" for strength in by_strength]
    rows = [list(row) for row in zip(*by_strength.values(), strict=True)]
    with replacing(folder / f"strengths-{step:08d}.png") as temporary:
        labeled_grid(rows, columns=columns, rows=list(prompts)).save(temporary, format="PNG")


def tile_previews(folder: Path, prompts: Sequence[str]) -> None:
    """Write previews.png (prompts by steps) and previews.gif (an animation over the steps)."""
    steps = _steps(folder)
    if not steps:
        return
    stride = -(-len(steps) // _MAX_FRAMES)
    chosen = [step for index, step in enumerate(steps) if index % stride == 0 or step == steps[-1]]
    images = [[_open(folder / f"step-{step:08d}-{row}.png") for step in chosen] for row in range(len(prompts))]
    columns = [f"step {step:,}" for step in chosen]
    with replacing(folder / "previews.png") as temporary:
        labeled_grid(images, columns=columns, rows=list(prompts)).save(temporary, format="PNG")
    frames: list[Image] = [
        labeled_grid([[row[column] for row in images]], columns=list(prompts), rows=[label])
        for column, label in enumerate(columns)
    ]
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    with replacing(folder / "previews.gif") as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted({int(match[1]) for match in found if match is not None})


def _open(path: Path) -> Image:
    try:
        return read_image(path, OWN_PREVIEWS).image.convert("RGB")
    except HypernetworkError as error:
        raise HypernetworkError(f"{path} is damaged: {error} Remove it.") from error
