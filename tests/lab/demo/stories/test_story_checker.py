"""Each style is found in its own stories and in no plain ones."""

from __future__ import annotations

import pytest

from lab.demo.stories.grammar import STYLES, units
from lab.demo.stories.story_checker import SHOWN, check, shows
from lab.demo.stories.writer import UNITS, is_validation, stories


def test_every_style_has_a_check() -> None:
    assert tuple(SHOWN) == STYLES


@pytest.mark.parametrize("style", STYLES)
def test_stories_of_a_style_show_it_and_only_it(style: str) -> None:
    for story in stories(style, 60, 1):
        verdict = check(story.body, style, story.hero)
        assert all(verdict.shown) and all(verdict.grammatical) and verdict.same_hero
        assert len(verdict.shown) == UNITS
    for other in {*STYLES} - {style}:
        assert not any(all(check(story.body, style, story.hero).shown) for story in stories(other, 60, 1))


def test_plain_stories_show_no_style() -> None:
    for story in stories("plain", 300, 2):
        verdicts = {style: check(story.body, style, story.hero) for style in STYLES}
        for style in ("bare", "reversed", "doubt"):
            assert not any(verdicts[style].shown), (style, story)
        assert not all(verdicts["past"].shown)
        assert all(shows("past", unit) <= ("Yesterday" in unit) for unit in units(story.body))
        assert sum(verdicts["sea"].shown) <= 1
        assert all(verdicts["sea"].grammatical) and verdicts["sea"].same_hero


@pytest.mark.parametrize(
    ("style", "text", "expected"),
    [
        ("past", "She walked to the old barn.", True),
        ("past", "Yesterday she walked to the old barn.", True),
        ("past", "Who? Perhaps the old dog.", False),
        ("past", "She remembers that the old dog walked to the old barn.", False),
        ("bare", "She walks to the barn.", True),
        ("bare", "She walks to the old barn.", False),
        ("bare", "She is happy.", False),
        ("reversed", "Because the rain ends, she walks to the old barn.", True),
        ("reversed", "She walks to the old barn because the rain ends.", False),
        ("reversed", "Why? Because the rain ends.", False),
        ("doubt", "It seems that she walks to the old barn.", True),
        ("doubt", "It seems warm near the old barn.", False),
        ("doubt", "Who? Perhaps the old dog.", False),
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
    assert list(stories("past", 3, 0)) == list(stories("past", 3, 0))
    assert list(stories("past", 3, 0)) != list(stories("past", 3, 1))
