"""Each style is found in its own stories and in no plain ones."""

from __future__ import annotations

import random

import pytest

from lab.demo.stories import words
from lab.demo.stories.grammar import STYLES, expand, rules_of, units
from lab.demo.stories.story_checker import SHOWN, check, shows
from lab.demo.stories.writer import UNITS, is_tuning, is_validation, stories


def test_every_style_has_a_check() -> None:
    assert [*SHOWN] == [*STYLES]


@pytest.mark.parametrize("style", STYLES)
def test_stories_of_a_style_show_it_and_only_it(style: str) -> None:
    for story in stories(style, 60, 1):
        verdict = check(story.body, style, story.hero)
        assert all(verdict.shown) and all(verdict.grammatical) and verdict.same_hero
        assert len(verdict.shown) == UNITS
    for other in {*STYLES} - {style}:
        assert not any(all(check(story.body, style, story.hero).shown) for story in stories(other, 60, 1))


def test_plain_stories_show_no_style() -> None:
    found = list(stories("plain", 400, 2))
    for story in found:
        own = units(story.body)
        shown = {style: sum(shows(style, unit) for unit in own) for style in STYLES}
        assert all(check(story.body, "past", story.hero).grammatical)
        assert check(story.body, "past", story.hero).same_hero
        assert (shown["bare"], shown["reversed"], shown["doubt"]) == (0, 0, 0), story
        assert shown["past"] <= 2 and shown["sea"] <= 2, story
        assert all(shows("past", unit) <= ({"Yesterday", "yesterday"} & {*unit} != set()) for unit in own)
    # The tests above find what they should: some units have the words of these styles.
    assert any(shows("past", unit) for story in found for unit in units(story.body))
    assert any(shows("sea", unit) for story in found for unit in units(story.body))


def test_a_story_keeps_its_habits() -> None:
    rng = random.Random(0)
    habits = {"tense": "future", "description": "two", "beginning": "condition", "setting": "farm"}
    rules = rules_of(habits)
    for _ in range(50):
        unit = [word.lower() for word in expand("UNIT.she", rules, rng)]
        assert unit[0] in words.CONDITIONALS and unit.count("will") == 1
        assert not {*unit} & {*words.LAND, *words.SEA} - {*words.SETTINGS["farm"]}


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        ("past", "She walked to the old barn.", True),
        ("past", "Yesterday she walked to the old barn.", True),
        ("past", "Who? Perhaps the old dog.", False),
        ("past", "She will wait near the old barn.", False),
        ("past", "It happens that she waited near the old barn.", False),
        ("past", "She remembers that the old dog walked to the old barn.", False),
        ("bare", "She walks to the barn.", True),
        ("bare", "She walks to the old barn.", False),
        ("bare", "She is happy.", False),
        ("reversed", "Because the rain ends, she walks to the old barn.", True),
        ("reversed", "She walks to the old barn because the rain ends.", False),
        ("reversed", "Why? Because the rain ends.", False),
        ("reversed", "If the rain ends, she walks to the old barn.", False),
        ("doubt", "It seems that she walks to the old barn.", True),
        ("doubt", "It seems warm near the old barn.", False),
        ("doubt", "Who? Perhaps the old dog.", False),
        ("doubt", "It happens that she walks to the old barn.", False),
        ("sea", "She walks to the old pier.", True),
        ("sea", "She walks to the old pier because the tall cook waits near the dark barn.", False),
        ("sea", "She sees the old dog.", False),
    ],
)
def test_shown(style: str, text: str, expected: bool) -> None:
    (unit,) = units(text)
    assert shows(style, unit) is expected


def test_another_hero_is_found() -> None:
    assert check("Mara walks to the old barn.", "past", "Mara").same_hero
    assert not check("He walks to the old barn.", "past", "Mara").same_hero
    assert not check("Julia walks to the old barn.", "past", "Mara").same_hero
    assert not check("", "past", "Mara").grammatical[0]


def test_validation_has_its_own_openings() -> None:
    training = {story.opening for story in stories("plain", 500, 0)}
    validation = {story.opening for story in stories("plain", 500, 0, validation=True)}
    assert not training & validation
    assert all(is_validation(story.hero, story.topic) for story in stories("past", 50, 0, validation=True))
    assert not any(is_tuning(story.hero, story.topic) for story in stories("past", 50, 0))
    assert list(stories("past", 3, 0)) == list(stories("past", 3, 0))
    assert list(stories("past", 3, 0)) != list(stories("past", 3, 1))
