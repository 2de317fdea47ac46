"""Each training stage runs, keeps a checkpoint and resumes from it."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import hnloader
from hnloader.demo.sampling import generate, load_pipeline
from hnloader.demo.scenes import Scene, SceneObject
from lab.demo.train import main
from lab.demo.training.common import Budget, cosine_rate
from lab.demo.training.text import WORDS, learn_merges
from lab.demo.training.unet import object_weights
from lab.demo.training.vae import build_vae, even_out_latents


def test_budget_ends_at_the_first_limit() -> None:
    assert Budget(steps=10).progress(5, 1e9) == 0.5
    assert Budget(minutes=2).progress(10**6, 60) == 0.5
    assert Budget(steps=10, minutes=1).progress(1, 120) == 1.0


def test_rate_rises_then_falls() -> None:
    rates = [cosine_rate(step / 1000, step) for step in range(1000)]
    assert rates[0] < rates[50] < rates[99]
    assert rates[99] > rates[500] > rates[999] > 0


def test_merges_join_each_word_to_one_token() -> None:
    merges = learn_merges(WORDS)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            best = min(itertools.pairwise(pieces), key=lambda pair: ranks.get(pair, 10**9))
            assert best in ranks, word
            index = next(i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) == best)
            pieces[index : index + 2] = ["".join(best)]


@pytest.mark.parametrize("size", ["small", "large"])
def test_object_weighs_about_as_much_as_its_background(size: str) -> None:
    def weights(shape: str) -> np.ndarray:
        return object_weights(Scene((SceneObject(shape, "red", size, "top left"),), "white"))

    given = weights("star")
    assert np.array_equal(given, weights("circle"))
    assert given[4, 4] > 3 > given[4, 12] == given[12, 4] == 1
    on_object = given > 1
    assert 0.7 < (given[on_object] - 1).sum() / given.size < 1.3


def test_normalized_latents_keep_the_images() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        even_out_latents(vae, count=64)
        after = vae.decode(vae.encode(images).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert vae.config.scaling_factor == 1.0


def test_a_training_stage_needs_a_limit(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["vae", "--work", str(tmp_path)])


@pytest.mark.slow
def test_stages_run_and_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1,024 images, three times, take most of the test; another test checks the function.
    monkeypatch.setattr("lab.demo.train.even_out_latents", partial(even_out_latents, count=64))
    work, out = tmp_path / "work", tmp_path / "out"
    common = ["--work", str(work), "--out", str(out), "--batch", "2", "--images", "64"]
    for stage, steps in (("vae", 2), ("vae", 4), ("decoder", 2), ("unet", 2), ("unet", 3), ("export", 1)):
        assert main([stage, *common, "--steps", str(steps)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("resumed at step 2") == 2
    for steps in (1, 2):
        assert main(["style", *common, "--style", "halftone", "--steps", str(steps)]) == 0
    assert "resumed at step 1" in capsys.readouterr().out
    hypernetwork = hnloader.load(out / "hypernetworks" / "halftone.pt")
    assert hypernetwork.metadata["step"] == 2
    assert len(str(hypernetwork.metadata["sd_checkpoint"])) == 10
    pipeline = load_pipeline(out / "pipeline")
    with hnloader.attach(pipeline, hypernetwork, 1.0):
        assert next(generate(pipeline, ["a red circle"], steps=2)).shape == (64, 64, 3)
