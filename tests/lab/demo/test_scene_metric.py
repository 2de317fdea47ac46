"""The checker as a metric of a comparison."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hnloader.demo.scenes import held_out_scenes, lay_out
from hnloader.demo.styles import paint
from hnloader.errors import HypernetworkError
from lab.demo.scene_metric import SceneJudge


def drawn(style: str, count: int = 8, seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    random = np.random.default_rng(seed)
    scenes = held_out_scenes(count, seed)
    return [Image.fromarray(paint(style, *lay_out(scene, random))) for scene in scenes], [s.caption() for s in scenes]


def test_the_checker_tells_style_and_prompt() -> None:
    judge = SceneJudge("outline")
    images, prompts = drawn("outline")
    assert judge.style(images) == 1
    assert judge.adherence(images, prompts) == 1
    assert judge.adherence(images, [*prompts[1:], prompts[0]]) < 0.5
    assert judge.style(drawn("plain")[0]) == 0
    assert judge.adherence(images, ["a cat"] * 8) is None
    with pytest.raises(HypernetworkError, match="known: outline"):
        SceneJudge("cubism")
