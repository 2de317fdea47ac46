"""The space of drawn styles: it holds none of the styles that measure a predictor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hnloader.demo.random_styles import (
    RESERVED,
    draw_styles,
    is_reserved,
    random_style,
)
from hnloader.demo.scenes import as_floats, lay_out, random_scene
from hnloader.demo.styles import PAINTERS, paint
from lab.demo.subjects import NAMED


@pytest.mark.parametrize("name", NAMED)
def test_named_styles_are_points_of_the_space_that_are_reserved(name: str) -> None:
    rng = np.random.default_rng(0)
    scene = random_scene(rng, 2)
    background, layers = lay_out(scene, rng)
    ours = RESERVED[name].paint(background, layers).astype(int)
    assert np.abs(ours - PAINTERS[name](background, layers)).max() <= 1.5
    assert np.array_equal(paint(name, background, layers).shape, ours.shape)
    assert is_reserved(RESERVED[name])


def test_every_style_that_measures_is_reserved() -> None:
    assert set(RESERVED) == set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_styles_near_a_named_one_are_reserved(name: str) -> None:
    style = RESERVED[name]
    paper = tuple((red + 18, green + 18, blue - 18) for red, green, blue in style.paper)
    assert is_reserved(dataclasses.replace(style, paper=paper))
    assert is_reserved(dataclasses.replace(style, share=max(style.share - 0.2, 0), gray=0.2))
    assert is_reserved(dataclasses.replace(style, outline=style.outline and 3.0))
    if style.paper:
        assert is_reserved(dataclasses.replace(style, paper=(*style.paper, (250, 0, 250))))
        assert not is_reserved(dataclasses.replace(style, paper=((0, 160, 60),)))


def test_styles_that_share_only_a_paper_with_a_named_one_are_not_reserved() -> None:
    midnight = RESERVED["midnight"]
    assert not is_reserved(dataclasses.replace(midnight, outline=2.4, ink=(255, 128, 0), share=1))
    assert not is_reserved(dataclasses.replace(midnight, ink=(255, 255, 255), share=1))


def test_random_styles_keep_their_distance_from_the_named_ones() -> None:
    styles = [random_style(np.random.default_rng((0, index))) for index in range(500)]
    assert len({(len(style.paper), style.share in (0, 1), bool(style.outline)) for style in styles}) >= 10
    rng = np.random.default_rng(1)
    background, layers = lay_out(random_scene(rng, 2), rng)
    named = {name: style.paint(background, layers).astype(float) for name, style in RESERVED.items()}
    for style in styles:
        image = style.paint(background, layers).astype(float)
        away = {name: float(np.linalg.norm(image - other, axis=-1).max()) for name, other in named.items()}
        assert min(away.values()) > 32, (style, away)


def test_shapes_stand_out() -> None:
    for index in range(50):
        rng = np.random.default_rng((1, index))
        style = random_style(rng)
        background, layers = lay_out(random_scene(rng), rng)
        image = style.paint(background, layers).astype(float)
        away = np.linalg.norm(image - style.ground(as_floats(background)), axis=-1)
        assert away.max() > 40


def test_styles_are_drawn_into_folders_with_captions(tmp_path: Path) -> None:
    draw_styles(tmp_path / "a", 2, 3, seed=5)
    draw_styles(tmp_path / "b", 1, 3, seed=5)
    names = sorted(path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*.png"))
    assert names == [f"{style:05}/{image:02}.png" for style in range(2) for image in range(3)]
    captions = json.loads((tmp_path / "a" / "00000" / "captions.json").read_text())
    assert sorted(captions) == ["00.png", "01.png", "02.png"]
    assert all("background" in caption for caption in captions.values())
    for path in (tmp_path / "b").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "a" / path.relative_to(tmp_path / "b")).read_bytes()
