"""Small styles of images and texts, and predictors that were trained on them for a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hnloader.prediction.predictor_task import PredictorTask
from hnloader.training import Config, prepare, read_config
from tests.support.small_language_models import save_texts, sentences

COLORS = ("red", "blue", "old", "small", "the")
SETTINGS: dict[str, object] = {
    "steps": 6,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "lr_warmup_steps": 1,
    "ema_decay": 0.9,
    "save_every_n_steps": 2,
    "validate_every_n_steps": 3,
    "data.validation_split": 0.4,
    "previews.every_n_steps": 0,
    "predictor.most_examples": 3,
    "predictor.design.core_size": 4,
    "predictor.design.style_size": 8,
    "predictor.design.embedding_size": 4,
    "predictor.design.hidden_size": 8,
}


def save_style(folder: Path, color: int, count: int = 4) -> Path:
    """Save noisy images around a color, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(color)
    for index in range(count):
        values = np.clip(random.normal(color, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a thing {index}")
    return folder


def save_styles(folder: Path) -> Path:
    """Save five styles."""
    for index in range(5):
        save_style(folder / f"style{index}", 40 * index + 20)
    return folder


def save_text_styles(folder: Path) -> Path:
    """Save five styles of texts, each with its own adjective."""
    for color in COLORS:
        save_texts(folder / color, sentences(5, color=color))
    return folder


def save_predictor_of(model: Path, folder: Path, *, texts: bool = False) -> Path:
    """Train a predictor of a model for a few steps, on styles of images or texts."""
    output = folder / "predictor.safetensors"
    styles = save_text_styles(folder / "styles") if texts else save_styles(folder / "styles")
    given = {"model": str(model), "styles": str(styles), "output": str(output)}
    prepare(read_config(None, {**SETTINGS, **given}, "predictor")).run()
    return output


def task_of(config: Config) -> PredictorTask:
    """Return the task of the training of a predictor."""
    task = prepare(config).task
    assert isinstance(task, PredictorTask)
    return task
