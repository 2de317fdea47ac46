"""Try the file of a training run: images of it beside the images that it was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.errors import HypernetworkError
from hnloader.grids import labeled_grid
from hnloader.training.config import Config
from hnloader.training.dataset import open_image
from hnloader.training.preparation import image_task
from hnloader.training.previews import render_previews

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["try_file"]

_IMAGES = 2  # training images to compare with


def try_file(
    config: Config,
    file: Path,
    prompt: str = "",
    *,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Image:
    """Return a grid of training images, and of images with their captions: plain, and with the file.

    Args:
        config: The settings of the training run, on images.
        file: Its output, or other weights of it.
        prompt: A prompt for one more row. Default: none.
        device: Device of the model. Default: "auto".
        progress: Called with the finished and all images.

    Raises:
        HypernetworkError: The file, the model or the images cannot be read, or it was trained on texts.
    """
    if config.texts:
        raise HypernetworkError(f"{file.name}: it was trained on texts. Try it with hnloader write.")
    task = image_task(replace(config, start_from=str(file)), device, keep=True)
    examples = [*task.validation_images, *task.images][:_IMAGES]
    captions = [*([prompt] if prompt.strip() else []), *(task.captioner(image, 0) for image in examples)]
    name = config.placeholder_token if config.method == "embedding" else config.name
    captions = [caption.replace("{name}", name) for caption in captions]
    strengths = (0.0, 0.5, 1.0) if task.adapter.has_strength else (0.0, 1.0)
    columns: list[list[Image]] = []
    with task.denoiser.loaded():
        for number, strength in enumerate(strengths):
            plain = config.method == "embedding" and strength == 0
            texts = [_without(text, name) for text in captions] if plain else captions
            made: list[Image] = []
            for index, text in enumerate(texts):
                settings = replace(config.previews, seed=config.previews.seed + index)
                made += render_previews(task.denoiser.pipeline, task.adapter, [text], settings, strength)
                progress(number * len(texts) + index + 1, len(strengths) * len(texts))
            columns.append(made)
    originals = [open_image(image.path).image.convert("RGB").resize(columns[0][0].size) for image in examples]
    if len(originals) < len(captions):
        originals.insert(0, _blank(columns[0][0]))
    rows = [list(row) for row in zip(originals, *columns, strict=True)]
    labels = ["training image", *("plain" if each == 0 else f"strength {each:g}" for each in strengths)]
    return labeled_grid(rows, columns=labels, rows=captions, title=file.stem)


def _without(text: str, word: str) -> str:
    """Return a prompt without the word of an embedding."""
    return re.sub(r"\s+", " ", text.replace(word, " ")).strip(" ,")


def _blank(like: Image) -> Image:
    from PIL import Image

    return Image.new("RGB", like.size, "white")
