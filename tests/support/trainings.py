"""Settings, images and results of the training runs in tests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import hnloader
from hnloader.training import Config, read_config
from hnloader.training.captions import caption_of
from hnloader.training.dataset import Dataset, read_folder

# Values that other programs may leave in a JSON file.
WRONG_VALUES: tuple[Any, ...] = (None, True, -1, "x", [1], {"a": 1}, 10**400)
Run = Callable[..., Any]

SETTINGS: dict[str, object] = {
    "steps": 12,
    "batch_size": 2,
    "learning_rate": "1e-3",
    "lr_warmup_steps": 2,
    "save_every_n_steps": 4,
    "validate_every_n_steps": 4,
    "save_total_limit": 3,
    "previews.every_n_steps": 0,
    "hypernetwork.dropout": 0.2,
    "hypernetwork.norm": True,
    "ema_decay": 0.9,
    "noise_offset": 0.05,
}


def weights(path: Path) -> list[torch.Tensor]:
    return list(hnloader.load(path).state_dict().values())


def read(folder: Path, **data: object) -> Dataset:
    return read_folder(folder, read_config(None, {f"data.{key}": value for key, value in data.items()}).data)


def captions(dataset: Dataset, **data: object) -> dict[str, str]:
    config = read_config(None, {f"data.{key}": value for key, value in data.items()}).data
    return {image.path.name: caption_of(image, config, "style", 0) for image in dataset.images}


def save_image(path: Path, size: tuple[int, int] = (64, 64), color: object = "red", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def config_in(folder: Path, model: Path, **changes: object) -> Config:
    given = {"model": str(model), "images": str(folder / "images"), "output": str(folder / "style.pt"), "steps": 2}
    given |= {
        "validate_every_n_steps": 1,
        "previews.every_n_steps": 0,
        "save_total_limit": 1,
        "ema_decay": 0.9,
        "save_every_n_steps": 2,
    }
    return read_config(None, {**given, **changes})


def with_value(value: Any, at: tuple[Any, ...], new: object) -> Any:
    """The values with one in its place, or without it where `new` is "gone"."""
    value = json.loads(json.dumps(value))
    holder = value
    for key in at[:-1]:
        holder = holder[key]
    if new == "gone":
        del holder[at[-1]]
    else:
        holder[at[-1]] = new
    return value


@contextlib.contextmanager
def raises(kind: type[Exception], *facts: str) -> Iterator[None]:
    """Expect an error whose message contains facts, such as names and numbers."""
    with pytest.raises(kind) as caught:
        yield
    for fact in facts:
        assert fact in str(caught.value)
