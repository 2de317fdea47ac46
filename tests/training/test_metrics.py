"""Metrics of images."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from hnloader.demo.scenes import lay_out
from hnloader.errors import HypernetworkError, MissingExtraError
from hnloader.training.metrics import ClipMetric, LpipsMetric, PaletteMetric, pixel_drift
from lab.demo.scene_captions import validation_scenes
from lab.demo.study_styles import paint
from tests.support.tiny_model import make_tokenizer
from tests.support.trainings import raises


def drawn(style: str, count: int = 8, seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    random = np.random.default_rng(seed)
    scenes = validation_scenes(count, seed)
    return [Image.fromarray(paint(style, *lay_out(scene, random))) for scene in scenes], [s.caption() for s in scenes]


def test_the_palette_measures_the_style() -> None:
    training_images, without = drawn("duotone", seed=1)[0], drawn("plain", seed=2)[0]
    metric = PaletteMetric(training_images, without)
    assert metric.style(without) == pytest.approx(0)
    assert metric.style(training_images) == pytest.approx(1)
    assert metric.style(drawn("duotone", seed=3)[0]) > 0.9
    halfway = [
        Image.blend(a, b, 0.5) for a, b in zip(drawn("plain", seed=3)[0], drawn("duotone", seed=3)[0], strict=True)
    ]
    assert 0.1 < metric.style(halfway) < 0.95
    assert metric.adherence(without, ["a"] * 8) is None


def test_pixel_drift() -> None:
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    assert pixel_drift([black, white], [black, white]) == 0
    assert pixel_drift([black], [white]) == 1
    assert pixel_drift([black, black], [white, black]) == pytest.approx(0.5**0.5)


def test_clip_compares_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {"vocab_size": 54, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 52, "eos_token_id": 53}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, make_tokenizer(tmp_path / "words")).save_pretrained(tmp_path / "clip")
    images, prompts = drawn("plain", 4)
    metric = ClipMetric(tmp_path / "clip", images[:1])
    assert metric.style(images[:1]) == pytest.approx(1, abs=1e-5)
    assert metric.style(images) < 1
    assert -1 <= metric.adherence(images, prompts) <= 1
    assert metric.drift(images, images) == pytest.approx(0, abs=1e-5)
    assert metric.drift(images, images[::-1]) > 1e-4
    with raises(HypernetworkError, str(tmp_path / "none")):
        ClipMetric(tmp_path / "none", images)


class Distance:
    """Fake of LPIPS: checks the input and returns the mean difference."""

    def __init__(self, net: str, verbose: bool) -> None:
        assert net == "alex"

    def eval(self) -> Distance:
        return self

    def __call__(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        for each in (one, two):
            assert each.shape[:2] == (1, 3)
            assert each.dtype == torch.float32
            assert each.min() >= -1
        return (one - two).abs().mean().view(1, 1, 1, 1) / 2


def test_lpips_measures_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("lpips")
    package.LPIPS = Distance  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    metric = LpipsMetric()
    black, white = Image.new("RGB", (16, 8)), Image.new("RGB", (16, 8), "white")
    assert metric.drift([black, white], [black, white]) == 0
    assert metric.drift([black, white], [white, white]) == pytest.approx(0.5)
    assert metric.style([black]) is None

    def offline(net: str, verbose: bool) -> Distance:
        raise OSError("the server of the weights cannot be reached")

    package.LPIPS = offline  # type: ignore[attr-defined]
    with raises(HypernetworkError, "LPIPS", "the server"):
        LpipsMetric()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with raises(MissingExtraError, "pip install lpips"):
        LpipsMetric()
