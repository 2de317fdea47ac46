"""Check the checker on drawn images, wrong captions and degraded images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hnloader.demo.scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, Scene, lay_out, random_scene
from hnloader.demo.styles import draw, paint
from lab.demo.checker import ATTRIBUTES, check, holds, look
from lab.demo.style_scores import SCORES, style_score


def scenes(count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, 1 + index % 2, "train" if index % 3 else "validation") for index in range(count)]


def other(value: str, values: object) -> str:
    return next(name for name in list(values) if name != value)  # type: ignore[call-overload]


@pytest.mark.slow
def test_at_least_995_of_1000_drawn_images_pass() -> None:
    drawn = scenes(1000, seed=11)
    assert sum(check(draw(scene, index), scene).right for index, scene in enumerate(drawn)) >= 995


@pytest.mark.parametrize("attribute", ["shape", "color", "size", "position", "background"])
def test_one_wrong_attribute_is_rejected(attribute: str) -> None:
    rng = np.random.default_rng(2)
    for seed in range(40):
        scene = random_scene(rng)
        item = scene.objects[0]
        wrong = {
            "shape": lambda s=scene, i=item: replace(s, objects=(replace(i, shape=other(i.shape, SHAPES)),)),
            "color": lambda s=scene, i=item: replace(s, objects=(replace(i, color=other(i.color, COLORS)),)),
            "size": lambda s=scene, i=item: replace(s, objects=(replace(i, size=other(i.size, ("small", "large"))),)),
            "position": lambda s=scene, i=item: replace(
                s, objects=(replace(i, position=other(i.position, POSITIONS)),)
            ),
            "background": lambda s=scene: replace(s, background=other(s.background, BACKGROUNDS)),
        }[attribute]()
        verdict = check(draw(scene, seed), wrong)
        assert not verdict.right
        assert [name for name in ATTRIBUTES if not getattr(verdict, name)] == [attribute]


def test_swapped_colors_are_rejected() -> None:
    rng = np.random.default_rng(3)
    for seed in range(40):
        scene = random_scene(rng, objects=2)
        first, second = scene.objects
        if first.color == second.color:
            continue
        swapped = replace(scene, objects=(replace(first, color=second.color), replace(second, color=first.color)))
        assert not check(draw(scene, seed), swapped).right


def test_missing_and_additional_objects_are_counted() -> None:
    rng = np.random.default_rng(4)
    for seed in range(20):
        scene = random_scene(rng, objects=2)
        assert not check(draw(replace(scene, objects=scene.objects[:1]), seed), scene).count
        assert not check(draw(scene, seed), replace(scene, objects=scene.objects[:1])).count


def test_noise_and_empty_images_are_never_right() -> None:
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    empty = np.full((64, 64, 3), 245, np.uint8)
    for scene in scenes(20, seed=6):
        assert not check(noise, scene).right
        assert not check(empty, scene).right


def test_blurred_image_has_no_shape() -> None:
    scene = random_scene(np.random.default_rng(7))
    image = draw(scene, 0).reshape(4, 16, 4, 16, 3).mean((1, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    assert not check(image, scene).right


@pytest.mark.slow
@pytest.mark.parametrize("style", list(SCORES))
def test_shape_and_position_in_every_style(style: str) -> None:
    drawn = scenes(100, seed=8)
    rng = np.random.default_rng(9)
    images = [paint(style, *lay_out(scene, rng)) for scene in drawn]
    assert sum(holds(image, scene) for image, scene in zip(images, drawn, strict=True)) >= 90


def test_wrong_shape_in_a_style() -> None:
    rng = np.random.default_rng(10)
    for _ in range(20):
        scene = random_scene(rng)
        item = scene.objects[0]
        wrong = replace(scene, objects=(replace(item, shape=other(item.shape, SHAPES)),))
        assert not holds(paint("outline", *lay_out(scene, rng)), wrong)


@pytest.mark.slow
@pytest.mark.parametrize("style", list(SCORES))
def test_style_score(style: str) -> None:
    drawn = scenes(60, seed=12)
    rng = np.random.default_rng(13)
    styled = [style_score(style, paint(style, *lay_out(scene, rng))) for scene in drawn]
    plain = [style_score(style, draw(scene, rng)) for scene in drawn]
    assert np.nanmean(styled) > 0.75
    assert np.nanmean(plain) < 0.1


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        look(np.zeros((32, 32, 3), np.uint8))
