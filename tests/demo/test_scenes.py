"""Drawn scenes: deterministic, described by their captions, and split without overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hnloader.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    combinations,
    is_validation,
    lay_out,
    random_scene,
)
from hnloader.demo.styles import PAINTERS, draw, paint

RED_CIRCLE = Scene((SceneObject("circle", "red", "large", "top left"),), "white")


def test_caption_names_every_attribute() -> None:
    assert RED_CIRCLE.caption() == "a large red circle at the top left on a white background"
    two = Scene((*RED_CIRCLE.objects, SceneObject("star", "blue", "small", "center")), "gray")
    assert two.caption() == (
        "a large red circle at the top left and a small blue star in the center on a gray background"
    )


def test_same_seed_draws_the_same_image_and_another_seed_another() -> None:
    first = draw(RED_CIRCLE, 3)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw(RED_CIRCLE, 3))
    assert not np.array_equal(first, draw(RED_CIRCLE, 4))


def test_pixels_are_where_and_what_the_words_say() -> None:
    image = draw(RED_CIRCLE, 0).astype(int)
    assert np.abs(image[17, 17] - COLORS["red"]).max() < 10
    assert np.abs(image[50, 50] - BACKGROUNDS["white"]).max() < 10


def test_every_shape_stays_inside_the_frame() -> None:
    for shape, position, seed in itertools.product(SHAPES, POSITIONS, range(5)):
        scene = Scene((SceneObject(shape, "red", "large", position),), "black")
        edge = draw(scene, seed)
        frame = np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]]).astype(int)
        assert np.abs(frame - BACKGROUNDS["black"]).max() < 120, (shape, position, seed)


def test_splits_are_disjoint_and_complete() -> None:
    train, validation = set(combinations("train")), set(combinations("validation"))
    assert not train & validation
    assert len(train | validation) == len(SHAPES) * len(COLORS) * len(SIZES) * len(POSITIONS) * len(BACKGROUNDS)
    assert 0.15 < len(validation) / 960 < 0.3


def test_training_scenes_contain_no_validation_object() -> None:
    rng = np.random.default_rng(0)
    for index in range(400):
        scene = random_scene(rng, objects=1 + index % 2)
        assert not any(is_validation(item, scene.background) for item in scene.objects)


@pytest.mark.parametrize("style", [style for style in PAINTERS if style != "plain"])
def test_a_style_changes_the_image_and_only_the_image(style: str) -> None:
    background, layers = lay_out(RED_CIRCLE, np.random.default_rng(0))
    plain, styled = paint("plain", background, layers), paint(style, background, layers)
    assert styled.shape == plain.shape
    assert np.abs(styled.astype(int) - plain.astype(int)).mean() > 3


def test_unknown_style_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="outline"):
        paint("cubism", *lay_out(RED_CIRCLE, np.random.default_rng(0)))
