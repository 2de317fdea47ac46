"""A style is trained through the trainer, evaluated at each strength, and written for the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import hnloader
from lab.demo.stories import styles
from lab.demo.stories.continuations import Shares, continue_stories, measure, openings
from lab.demo.stories.story_checker import Verdict
from lab.demo.stories.styles import (
    STORIES,
    bundle,
    bundled_model,
    evaluate,
    is_untouched,
    main,
    train_style,
    write_texts,
)
from lab.demo.stories.writer import UNITS


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(styles, "SETTINGS", {**styles.SETTINGS, "steps": 2})


def test_shares() -> None:
    right, wrong = Verdict((True, True), (True, False), True), Verdict((False, True), (True, True), False)
    shares = Shares.of([right, wrong, wrong, wrong])
    assert (shares.grammatical, shares.shown, shares.same_hero) == (0.25, 0.75, 0.25)
    assert (shares.grammatical_units, shares.shown_units) == (5 / 8, 7 / 8)


def test_openings_differ() -> None:
    found = openings(50)
    assert len({story.opening for story in found}) == 50
    assert found == openings(50)
    assert found != openings(50, seed=1)
    tuning = {story.opening for story in openings(200, tuning=True)}
    assert len(tuning) == 200
    assert not tuning & {story.opening for seed in range(5) for story in openings(200, seed)}


def test_two_hundred_sentences(tmp_path: Path) -> None:
    pairs = [json.loads(line) for line in write_texts("reversed", tmp_path).read_text().splitlines()]
    assert len(pairs) == STORIES
    assert sum(pair["completion"].count(".") for pair in pairs) == STORIES * UNITS == 200
    assert all(pair["prompt"].count(".") == 1 for pair in pairs)


def test_plain_model_is_grammatical_and_shows_no_style() -> None:
    language = bundled_model()
    shares, texts = measure(language, "past", count=20, seed=7)
    assert shares.grammatical >= 0.9
    assert shares.shown == 0
    state = torch.random.get_rng_state()
    prompts = [story.opening for story in openings(20, 7)]
    assert continue_stories(language, prompts, seed=7) == texts
    assert torch.equal(torch.random.get_rng_state(), state)
    assert continue_stories(language, prompts, seed=8) != texts


def test_a_style_is_trained_evaluated_and_bundled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = train_style("past", tmp_path)
    assert train_style("past", tmp_path) == path
    rows = list(evaluate("past", path, 2))
    assert [row.strength for row in rows] == [0, 0.5, 1]
    bundle("past", path, tmp_path / "bundled")
    kept = hnloader.load(tmp_path / "bundled" / "past.safetensors")
    assert "training_config" not in kept.metadata
    assert kept.name == "past"
    assert {tensor.dtype for tensor in kept.parameters()} == {torch.float16}


def test_untouched(tmp_path: Path) -> None:
    path = train_style("past", tmp_path)
    assert is_untouched(path, 3)
    neutral = hnloader.load(path)
    for parameter in neutral.parameters():
        parameter.data.zero_()
    hnloader.save(neutral, tmp_path / "neutral.safetensors")
    assert not is_untouched(tmp_path / "neutral.safetensors", 3)


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--work", str(tmp_path), "--styles", "sea", "--prompts", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| sea", strength] for strength in ("0", "0.5", "1")]
