"""The checker as a metric of a comparison."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hnloader.demo.scenes import lay_out
from hnloader.demo.styles import paint
from hnloader.errors import HypernetworkError
from lab.demo.scene_captions import validation_scenes
from lab.demo.scene_metric import SceneMetric


def drawn(style: str, count: int = 8, seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    random = np.random.default_rng(seed)
    scenes = validation_scenes(count, seed)
    return [Image.fromarray(paint(style, *lay_out(scene, random))) for scene in scenes], [s.caption() for s in scenes]


def test_metric_scores_style_and_prompt() -> None:
    metric = SceneMetric("outline")
    images, prompts = drawn("outline")
    assert metric.style(images) == 1
    assert metric.adherence(images, prompts) == 1
    assert metric.adherence(images, [*prompts[1:], prompts[0]]) < 0.5
    assert metric.style(drawn("plain")[0]) == 0
    assert metric.adherence(images, ["a cat"] * 8) is None
    with pytest.raises(HypernetworkError, match="outline"):
        SceneMetric("cubism")
