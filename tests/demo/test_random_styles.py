"""The space of drawn styles: it holds none of the styles that measure a predictor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hnloader.demo.random_styles import (
    RESERVED,
    RESERVED_DISTANCE,
    RandomStyle,
    draw_styles,
    is_reserved,
    random_style,
)
from hnloader.demo.scenes import as_floats, lay_out, random_scene
from hnloader.demo.styles import PAINTERS, paint
from lab.demo import study_styles

# The styles that measure a predictor as points of the space, without the rule that reserves them.
COLORLESS = (0.0, 0.0, 0.0)
NAMED = {
    "duotone": RandomStyle((study_styles.CREAM,), 0, study_styles.BROWN, 1, 0, 0),
    "chalk": RandomStyle((study_styles.BOARD,), 0, (245, 245, 245), study_styles.CHALKED, 0, 0),
    "midnight": RandomStyle((study_styles.MIDNIGHT,), 0, study_styles.MIDNIGHT, study_styles.DIMMED, 0, 0),
    "cyanotype": RandomStyle((study_styles.PRUSSIAN_BLUE,), 0, study_styles.PALE, 1, 0, 0),
    "screenprint": RandomStyle((study_styles.MUSTARD,), 0, study_styles.TEAL, 1, 0, 0),
    "sunset": RandomStyle(study_styles.SKY, math.pi / 2, study_styles.SILHOUETTE, 1, 0, 0),
    "blueprint": RandomStyle(((25, 60, 130),), 0, (235, 240, 250), 1, 0, 2.4),
    "neon": RandomStyle((study_styles.NIGHT,), 0, COLORLESS, 0, 0, 2.4),
    "outline": RandomStyle((), 0, COLORLESS, 0, 0, 2.4),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_styles_are_points_of_the_space_that_are_reserved(name: str) -> None:
    rng = np.random.default_rng(0)
    scene = random_scene(rng, 2)
    background, layers = lay_out(scene, rng)
    ours = NAMED[name].paint(background, layers).astype(int)
    assert np.abs(ours - PAINTERS[name](background, layers)).max() <= 1.5
    assert np.array_equal(paint(name, background, layers).shape, ours.shape)
    assert is_reserved(NAMED[name])


def test_random_styles_keep_their_distance_from_the_named_ones() -> None:
    styles = [random_style(np.random.default_rng((0, index))) for index in range(500)]
    kinds = set()
    for style in styles:
        kinds.add((len(style.paper), style.share in (0, 1), bool(style.outline)))
        for paper in style.paper:
            assert all(math.dist(paper, color) >= RESERVED_DISTANCE for color in RESERVED.values())
        if not style.paper and style.outline:
            # An outline on the scene's own background hides the words' colors, which `outline` keeps.
            assert style.share >= 0.6
    assert len(kinds) >= 10
    assert set(map(as_tuple, RESERVED.values())) >= {paper for named in NAMED.values() for paper in named.paper}


def as_tuple(color: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple(color)


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
