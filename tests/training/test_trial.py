"""Try the file of a training run beside its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hnloader.errors import HypernetworkError
from hnloader.training import train
from hnloader.training.trial import _without, try_file
from tests.support.trainings import Run


@pytest.mark.parametrize("method", ["hypernetwork", "embedding", "lora"])
def test_every_method_can_be_tried(method: str, settings_of: Run) -> None:
    name = "style.safetensors" if method == "lora" else "style.pt"
    config = settings_of(name, method=method, steps=2, previews__num_inference_steps=1)
    train(config)
    seen: list[tuple[int, int]] = []
    grid = try_file(config, Path(config.output), "a cat, {name}", progress=lambda *at: seen.append(at))
    columns = 2 if method == "embedding" else 3
    assert seen[-1] == (3 * columns, 3 * columns) and len(seen) == 3 * columns
    assert isinstance(grid, Image.Image) and grid.width > columns * 32
    smaller = try_file(config, Path(config.output))
    assert smaller.height < grid.height and smaller.width == grid.width


def test_files_of_texts_are_refused(settings_of: Run) -> None:
    config = settings_of()
    with pytest.raises(HypernetworkError, match="hnloader write"):
        try_file(replace(config, texts="texts", images=""), Path(config.output))


def test_the_word_of_an_embedding_is_left_out() -> None:
    assert _without("<ink>, a cat in  <ink> style", "<ink>") == "a cat in style"
