"""Captions and validation scenes of the bundled pipeline."""

from __future__ import annotations

import numpy as np

from hnloader.demo.scenes import Scene, SceneObject, is_validation
from lab.demo.scene_captions import parse_caption, training_caption, validation_scenes

RED_CIRCLE = Scene((SceneObject("circle", "red", "large", "top left"),), "white")


def test_scene_captions_can_be_parsed() -> None:
    for scene in validation_scenes(60):
        assert parse_caption(scene.caption()) == scene
    for other in ("a cat", "a large red circle", "a large red cat in the center on a white background", ""):
        assert parse_caption(other) is None


def test_validation_scenes_differ_and_are_never_trained_on() -> None:
    scenes = validation_scenes(200)
    assert len({scene.caption() for scene in scenes}) == 200
    assert all(is_validation(item, scene.background) for scene in scenes for item in scene.objects)
    assert sum(len(scene.objects) == 2 for scene in scenes) == 50
    assert scenes == validation_scenes(200)
    assert scenes != validation_scenes(200, seed=1)


def test_training_captions_sometimes_leave_words_out() -> None:
    rng = np.random.default_rng(0)
    captions = [training_caption(RED_CIRCLE, rng) for _ in range(200)]
    full = captions.count(RED_CIRCLE.caption())
    assert 100 < full < 200
    assert all("red circle" in caption for caption in captions)
