"""Drawn styles: their stories keep them, differ, and show none of the styles that measure a predictor."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from hnloader.demo import language_model_folder
from lab.demo.stories import words
from lab.demo.stories.drawn_styles import DrawnStyle, drawn_stories, drawn_style, main
from lab.demo.stories.grammar import units
from lab.demo.stories.story_checker import SHOWN, shows
from lab.demo.stories.writer import UNITS, Story, is_validation, stories


@pytest.fixture(scope="module")
def drawn() -> list[tuple[DrawnStyle, list[Story]]]:
    styles = [drawn_style(random.Random(f"test {index}")) for index in range(40)]
    return [(style, list(drawn_stories(style, 3, index))) for index, style in enumerate(styles)]


def test_no_unit_shows_a_named_style(drawn: list[tuple[DrawnStyle, list[Story]]]) -> None:
    every = [unit for _, told in drawn for story in told for unit in units(story.body)]
    assert len(every) == 40 * 3 * UNITS
    assert not [unit for unit in every if any(shows(name, unit) for name in SHOWN)]
    assert not {*words.SEA} & {word for unit in every for word in unit}
    hedges = {"perhaps", "maybe"}
    assert not hedges & {word.lower() for unit in every for word in unit}


def test_the_stories_are_in_their_style_and_not_in_others(drawn: list[tuple[DrawnStyle, list[Story]]]) -> None:
    for style, told in drawn:
        assert all(style.shows(unit) for story in told for unit in units(story.body))
    pairs = itertools.pairwise(drawn)
    others = [style.shows(unit) for (style, _), (_, told) in pairs for unit in units(told[0].body)]
    assert sum(others) < 0.2 * len(others)


def test_named_styles_are_not_in_the_space(drawn: list[tuple[DrawnStyle, list[Story]]]) -> None:
    for name in SHOWN:
        told = [unit for story in stories(name, 5, 1) for unit in units(story.body)]
        # Rules alone do not exclude a style without adjectives; the words of each unit do.
        found = [style.shows(unit) for style, _ in drawn for unit in told]
        assert sum(found) < 0.05 * len(found)


def test_the_model_knows_all_words(drawn: list[tuple[DrawnStyle, list[Story]]]) -> None:
    known = json.loads((language_model_folder() / "tokenizer.json").read_text())["model"]["vocab"]
    told = " ".join(str(story) for _, found in drawn for story in found)
    assert {f" {word}" for word in re.findall(r"\w+", told)} <= {*known}


def test_openings_are_those_of_training_or_validation(drawn: list[tuple[DrawnStyle, list[Story]]]) -> None:
    style, told = drawn[0]
    assert not any(is_validation(story.hero, story.topic) for story in told)
    assert all(is_validation(story.hero, story.topic) for story in drawn_stories(style, 3, 0, validation=True))


def test_the_command_writes_the_same_folders_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["--out", str(tmp_path / name), "--styles", "2", "--stories", "3"]) == 0
    files = sorted((tmp_path / "one").rglob("*.jsonl"))
    assert [path.parent.name for path in files] == ["00000", "00001"]
    for path in files:
        lines = path.read_text().splitlines()
        assert len({json.loads(line)["text"] for line in lines}) == 3
        assert path.read_text() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_text()
