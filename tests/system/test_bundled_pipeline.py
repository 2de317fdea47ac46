"""The bundled pipeline and its hypernetworks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

import hnloader
from hnloader.demo import hypernetwork_paths, pipeline_folder, predictor_path
from hnloader.demo.grid import render_demo
from hnloader.demo.sampling import generate, load_pipeline
from hnloader.demo.scenes import Scene, SceneObject
from lab.demo.checker import look
from lab.demo.evaluate import adherence, measure_style
from lab.demo.scene_captions import validation_scenes

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PROMPT = "a large red circle in the center on a white background"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline(pipeline_folder())


def test_all_files_together_stay_below_16_megabytes() -> None:
    files = [path for path in pipeline_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in (*files, *hypernetwork_paths().values())) < 16_000_000


def test_all_bundled_models_together_stay_below_25_megabytes() -> None:
    files = [path for path in pipeline_folder().parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in files} == {".json", ".pt", ".py", ".safetensors", ".txt"}
    assert sum(path.stat().st_size for path in files) < 25_000_000
    assert predictor_path().stat().st_size < 4_000_000


def test_same_seed_gives_the_same_image_and_another_seed_another(pipeline: StableDiffusionPipeline) -> None:
    first, again = (next(generate(pipeline, [PROMPT], seed=1, steps=4)) for _ in range(2))
    other = next(generate(pipeline, [PROMPT], seed=2, steps=4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_words_decide_the_image(pipeline: StableDiffusionPipeline) -> None:
    words = [
        ("red", "top left", "white"),
        ("blue", "bottom right", "black"),
        ("yellow", "top right", "gray"),
        ("green", "bottom left", "cyan"),
    ]
    scenes = [
        Scene((SceneObject("circle", color, "large", position),), background) for color, position, background in words
    ]
    seen = [look(image) for image in generate(pipeline, [scene.caption() for scene in scenes])]
    assert [image.background for image in seen] == [background for _, _, background in words]
    found = [(image.objects[0].color, image.objects[0].position) for image in seen if image.objects]
    assert sum(pair == (color, position) for pair, (color, position, _) in zip(found, words, strict=True)) >= 3


def test_words_outside_the_vocabulary_do_not_fail(pipeline: StableDiffusionPipeline) -> None:
    image = next(generate(pipeline, ["ein Bild, naïve 日本 🎨, " + "very " * 60], steps=2))
    assert image.shape == (64, 64, 3)


def test_every_caption_word_is_one_token(pipeline: StableDiffusionPipeline) -> None:
    for scene in validation_scenes(50):
        assert len(pipeline.tokenizer.tokenize(scene.caption())) == len(scene.caption().split())


def test_half_precision_draws_nearly_the_same_image(pipeline: StableDiffusionPipeline) -> None:
    from diffusers import StableDiffusionPipeline

    half = StableDiffusionPipeline.from_pretrained(pipeline_folder(), torch_dtype=torch.float16)
    half.set_progress_bar_config(disable=True)
    full_image, half_image = (next(generate(pipe, [PROMPT], steps=4)) for pipe in (pipeline, half))
    assert np.abs(full_image.astype(int) - half_image).mean() < 2


def test_image_to_image_starts_from_the_given_image(pipeline: StableDiffusionPipeline) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    start = next(generate(pipeline, [PROMPT], steps=10))
    changed = StableDiffusionImg2ImgPipeline(**pipeline.components)
    changed.set_progress_bar_config(disable=True)
    result = changed(
        PROMPT,
        image=Image.fromarray(start),
        strength=0.2,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(0),
        guidance_scale=3.0,
    ).images[0]
    assert np.abs(np.asarray(result).astype(int) - start).mean() < 20


@pytest.mark.parametrize("style", ["outline", "halftone"])
def test_hypernetwork_files_are_the_webuis_own(style: str) -> None:
    hypernetwork = hnloader.load(hypernetwork_paths()[style])
    assert hypernetwork.name == style
    assert set(hypernetwork.widths) == {64, 96, 112, 128}
    assert hypernetwork.architecture is not None
    assert hypernetwork.architecture.affine == (style == "outline")
    info = hnloader.inspect(hypernetwork_paths()[style])
    assert info.step is not None
    assert info.step > 0


def test_strength_zero_leaves_the_image_alone(pipeline: StableDiffusionPipeline) -> None:
    plain = next(generate(pipeline, [PROMPT], steps=4))
    for path in hypernetwork_paths().values():
        with hnloader.attach(pipeline, path, strength=0.0):
            assert np.array_equal(plain, next(generate(pipeline, [PROMPT], steps=4)))


@pytest.mark.slow
@pytest.mark.parametrize("style", ["outline", "halftone"])
def test_style_rises_with_strength(pipeline: StableDiffusionPipeline, style: str) -> None:
    hypernetwork = hnloader.load(hypernetwork_paths()[style])
    zero, half, full = measure_style(pipeline, hypernetwork, style, validation_scenes(16, seed=2), steps=12)
    assert zero.score < half.score < full.score
    assert full.score > zero.score + 0.2
    assert full.held >= 0.75


@pytest.mark.slow
def test_images_follow_validation_prompts(pipeline: StableDiffusionPipeline) -> None:
    result = adherence(pipeline, validation_scenes(40, seed=3), steps=12)
    assert result.share("background") >= 0.9
    assert result.share("color") >= 0.9
    assert result.share("position") >= 0.9
    assert result.share() >= 0.9


@pytest.mark.slow
def test_demo_renders_one_labeled_grid(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = render_demo(tmp_path, prompts=[PROMPT], steps=2, progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "demo.png"
    assert seen[-1] == (6, 6)
    with Image.open(path) as image:
        assert image.width > 6 * 192
