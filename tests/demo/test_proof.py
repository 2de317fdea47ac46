"""What the proof of training measures: its judge, and what the pipeline's VAE lets a style show at best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hnloader.demo import pipeline_folder
from hnloader.demo.evaluate import load_pipeline
from hnloader.demo.pictures import PICTURES, draw_pictures
from hnloader.demo.proof import STYLES, _through_vae, judge
from hnloader.demo.scenes import Scene, draw, held_out_scenes, is_held_out, lay_out, parse_caption
from hnloader.demo.styles import paint


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return held_out_scenes(24, seed=777)


@pytest.mark.parametrize("style", STYLES)
def test_drawn_pictures_show_their_style_and_hold_their_prompt(style: str, scenes: list[Scene]) -> None:
    rng = np.random.default_rng(3)
    styled = judge(style, "drawn", scenes, [paint(style, *lay_out(scene, rng)) for scene in scenes])
    assert styled.shown >= 0.95
    assert styled.held >= 0.95
    plain = judge(style, "without", scenes, [draw(scene, rng) for scene in scenes])
    assert (plain.shown, plain.held) == (0, 1)
    # Pictures of other prompts hold nothing.
    others = [*scenes[1:], scenes[0]]
    assert judge(style, "drawn", others, [paint(style, *lay_out(scene, rng)) for scene in scenes]).held < 0.2


def test_the_vae_can_show_each_style_of_the_proof_but_not_the_halftone(scenes: list[Scene]) -> None:
    pipeline = load_pipeline(pipeline_folder())
    for style in STYLES:
        best = judge(style, "drawn, VAE", scenes, _through_vae(style, scenes, pipeline))
        assert best.shown >= 0.85, style
        assert best.held >= 0.85, style
    assert judge("halftone", "drawn, VAE", scenes, _through_vae("halftone", scenes, pipeline)).shown < 0.8


def test_the_pictures_to_train_on_have_one_or_two_objects_and_no_held_out_words(tmp_path: Path) -> None:
    draw_pictures("wash", tmp_path)
    captions = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    drawn = [scene for caption in captions if (scene := parse_caption(caption)) is not None]
    assert len(drawn) == len(captions) == PICTURES
    assert sum(len(scene.objects) == 2 for scene in drawn) == PICTURES // 4
    assert not any(is_held_out(item, scene.background) for scene in drawn for item in scene.objects)
