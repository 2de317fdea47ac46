"""The style study: its evaluation, and the limits of the VAE."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hnloader.demo import pipeline_folder
from hnloader.demo.drawing import IMAGES, draw_images
from hnloader.demo.sampling import load_pipeline
from hnloader.demo.scenes import COLORS, POSITIONS, SHAPES, Scene, is_validation, lay_out
from hnloader.demo.styles import draw, paint
from lab.demo import style_study
from lab.demo.scene_captions import parse_caption as parse
from lab.demo.scene_captions import validation_scenes
from lab.demo.style_scores import style_score
from lab.demo.style_study import HARDER, STYLES, _kept, _painted, evaluate, train_each
from lab.demo.training.vae import through_vae


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return validation_scenes(24, seed=777)


@pytest.mark.slow
@pytest.mark.parametrize("style", (*STYLES, *HARDER))
def test_drawn_images_have_their_style(style: str, scenes: list[Scene]) -> None:
    rng = np.random.default_rng(3)
    styled = evaluate(style, "drawn", scenes, [paint(style, *lay_out(scene, rng)) for scene in scenes])
    assert (styled.shown, styled.held) == (1, 1)
    plain = evaluate(style, "without", scenes, [draw(scene, rng) for scene in scenes])
    assert (plain.shown, plain.held) == (0, 1)
    # Images of other prompts hold nothing.
    others = [*scenes[1:], scenes[0]]
    assert evaluate(style, "drawn", others, [paint(style, *lay_out(scene, rng)) for scene in scenes]).held < 0.2


@pytest.mark.slow
def test_styles_are_distinguishable(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(4)
    for painted in STYLES:
        images = [paint(painted, *lay_out(scene, rng)) for scene in scenes[:8]]
        shown = {style for style in STYLES if evaluate(style, "drawn", scenes[:8], images).shown > 0}
        assert shown == {painted}


def test_recolored_images_keep_their_color_names(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(5)
    turned = dict(zip(COLORS, [*list(COLORS)[1:], next(iter(COLORS))], strict=True))
    for scene in scenes[:6]:
        others = tuple(type(item)(item.shape, turned[item.color], item.size, item.position) for item in scene.objects)
        for style in style_study.COLORINGS:
            image = paint(style, *lay_out(Scene(others, scene.background), rng))
            assert evaluate(style, "drawn", [scene], [image]).held == 0


@pytest.mark.parametrize("style", STYLES)
def test_half_styled_image_scores_between(style: str, scenes: list[Scene]) -> None:
    for scene in scenes[:6]:
        layout = lay_out(scene, np.random.default_rng(6))
        plain, styled = (paint(name, *layout).astype(np.float32) for name in ("plain", style))
        half = np.round((plain + styled) / 2).astype(np.uint8)
        scores = [style_score(style, image.astype(np.uint8)) for image in (plain, half, styled)]
        assert scores[0] < 0.5 < scores[2]
        assert scores[0] <= scores[1] < scores[2]


@pytest.mark.slow
def test_vae_reconstructs_every_style_except_halftone(scenes: list[Scene]) -> None:
    pipeline = load_pipeline(pipeline_folder())
    for style in (*STYLES, *HARDER):
        best = evaluate(style, "drawn, VAE", scenes, through_vae(pipeline.vae, _painted(style, scenes)))
        assert best.shown >= 0.95, style
        assert best.held >= 0.95, style
    assert (
        evaluate("halftone", "drawn, VAE", scenes, through_vae(pipeline.vae, _painted("halftone", scenes))).shown < 0.8
    )


def test_training_images_use_all_words_and_no_validation_scene(tmp_path: Path) -> None:
    draw_images("chalk", tmp_path)
    captions = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    drawn = [scene for caption in captions if (scene := parse(caption)) is not None]
    assert len(drawn) == len(captions) == IMAGES
    assert sum(len(scene.objects) == 2 for scene in drawn) == IMAGES // 2
    items = [item for scene in drawn for item in scene.objects]
    assert not any(is_validation(item, scene.background) for scene in drawn for item in scene.objects)
    assert all(5 <= sum(item.shape == shape for item in items) <= 10 for shape in SHAPES)
    assert all(3 <= sum(item.color == color for item in items) <= 7 for color in COLORS)
    assert all(2 <= sum(item.position == position for item in items) <= 9 for position in POSITIONS)


def test_interrupted_training_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([("interrupted", 300), ("done", 800), ("done", 900)])
    asked: list[Any] = []

    def train(config: Any, resume: bool) -> Any:
        asked.append(config)
        Path(config.output).write_bytes(b"")  # an interrupted training run writes what it has
        reason, step = next(ends)
        return SimpleNamespace(reason=reason, step=step)

    monkeypatch.setattr(style_study, "train", train)
    with pytest.raises(KeyboardInterrupt):
        train_each("neon", tmp_path, {"hypernetwork": 800})
    first = json.loads((tmp_path / "neon-hypernetwork.spent.json").read_text())
    again = train_each("neon", tmp_path, {"hypernetwork": 800})["hypernetwork"]
    assert (first["steps"], again.steps) == (300, 800)
    assert again.seconds > first["seconds"]
    assert train_each("neon", tmp_path, {"hypernetwork": 800})["hypernetwork"] == again
    # More steps than were made continue from there.
    assert train_each("neon", tmp_path, {"hypernetwork": 900})["hypernetwork"].steps == 900
    assert [config.steps for config in asked] == [800, 800, 900]


def test_settings_apply_to_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def train(config: Any, resume: bool) -> Any:
        asked.append(config)
        return SimpleNamespace(reason="done", step=config.steps)

    monkeypatch.setattr(style_study, "train", train)
    steps = {"hypernetwork": 2, "embedding": 2, "lora": 2}
    train_each("neon", tmp_path, steps, {"optimizer": "sgd", "learning_rate": 0.5})
    assert [(Path(each.output).name, each.optimizer, each.learning_rate) for each in asked] == [
        ("neon-hypernetwork.pt", "sgd", 0.5),
        ("neon-embedding.pt", "sgd", 0.5),
        ("neon-lora.safetensors", "sgd", 0.5),
    ]


def test_images_are_redrawn_after_a_change(tmp_path: Path) -> None:
    source, kept = tmp_path / "style.pt", tmp_path / "style.npy"
    source.write_bytes(b"")
    os.utime(source, (1000, 1000))
    shades = iter(range(3))

    def draw_them() -> list[Any]:
        return [np.full((64, 64, 3), next(shades), np.uint8)] * 2

    def seen() -> list[int]:
        return [int(image.max()) for image in _kept(kept, source, draw_them)]

    assert seen() == seen() == [0, 0]
    os.utime(kept, (900, 900))
    assert seen() == seen() == [1, 1]
