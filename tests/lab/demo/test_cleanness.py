from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hnloader.demo.scenes import ByteArray, Scene, SceneObject, lay_out, random_scene
from hnloader.demo.styles import paint
from lab.demo.cleanness import cleanness, mean_cleanness

SCENE = Scene((SceneObject("square", "red", "large", "top left"),), "gray")


def drawn(scene: Scene = SCENE, seed: int = 0) -> ByteArray:
    return paint("plain", *lay_out(scene, np.random.default_rng(seed)))


def test_a_drawn_scene_is_clean() -> None:
    rng = np.random.default_rng(5)
    scenes = [random_scene(rng, 1 + index % 2) for index in range(20)]
    found = mean_cleanness([paint("plain", *lay_out(scene, rng)) for scene in scenes], scenes)
    assert found.drift < 9  # each channel of a drawn background is up to 5 off
    assert found.smear == 0
    assert found.wobble < 0.1
    assert abs(found.blur) < 0.1


def test_another_gray_is_drift() -> None:
    shifted = np.clip(drawn().astype(int) + np.asarray((-12, 12, -12)), 0, 255).astype(np.uint8)
    before, after = cleanness(drawn(), SCENE), cleanness(shifted, SCENE)
    assert after.drift > before.drift + 8
    assert after.smear == before.smear


def test_a_stain_far_from_the_shape_is_smear() -> None:
    image = drawn()
    image[44:54, 40:54] = (170, 170, 210)
    found = cleanness(image, SCENE)
    assert found.smear > 25
    assert found.wobble == pytest.approx(cleanness(drawn(), SCENE).wobble, abs=0.02)


def test_uneven_edges_are_wobble() -> None:
    image, background = drawn(), drawn()[60, 60]
    image[8:12, 3:10] = background  # a bite out of the top left corner
    assert cleanness(image, SCENE).wobble > cleanness(drawn(), SCENE).wobble + 0.1


def test_soft_edges_are_blur() -> None:
    soft = np.asarray(Image.fromarray(drawn()).filter(ImageFilter.GaussianBlur(1.5)))
    found = dataclasses.asdict(cleanness(soft, SCENE))
    assert found["blur"] > 1
