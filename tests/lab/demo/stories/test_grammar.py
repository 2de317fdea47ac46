"""The parser accepts what the writer writes, and rejects changed text."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lab.demo.stories import words
from lab.demo.stories.grammar import HABITS, STYLES, as_text, choose_habits, is_unit, sentences, units, vocabulary
from lab.demo.stories.writer import stories


def written(style: str, count: int = 60, seed: int = 3) -> list[list[str]]:
    return [unit for story in stories(style, count, seed) for unit in units(story.body)]


@pytest.mark.parametrize("style", ("plain", *STYLES))
def test_written_units_are_grammatical(style: str) -> None:
    assert all(map(is_unit, written(style)))
    for story in stories(style, 60, 4):
        (opening,) = units(story.opening)
        assert is_unit(opening, "OPENING")
        assert not is_unit(opening)


def drop(unit: list[str], rng: random.Random) -> list[str]:
    """Return a unit without one of the words that it needs: adjectives and manners are optional."""
    needed = [i for i, word in enumerate(unit[:-1]) if word not in words.ADJECTIVES and word[0].islower()]
    at = rng.choice(needed)
    return unit[:at] + unit[at + 1 :]


def swap(unit: list[str], rng: random.Random) -> list[str]:
    at = rng.randrange(len(unit) - 2)
    return [*unit[:at], unit[at + 1], unit[at], *unit[at + 2 :]]


def replace(unit: list[str], rng: random.Random) -> list[str]:
    at = rng.randrange(len(unit) - 1)
    return [*unit[:at], rng.choice([word for word in vocabulary() if word != unit[at]]), *unit[at + 1 :]]


def shuffle(unit: list[str], rng: random.Random) -> list[str]:
    return rng.sample(unit, len(unit))


@pytest.mark.parametrize(("change", "least"), [(drop, 0.9), (swap, 0.98), (replace, 0.95), (shuffle, 0.99)])
def test_changed_units_are_rejected(change: Callable[[list[str], random.Random], list[str]], least: float) -> None:
    rng = random.Random(5)
    changed = [change(unit, rng) for unit in written("plain")]
    assert sum(not is_unit(unit) for unit in changed) / len(changed) >= least


@pytest.mark.parametrize(
    "text",
    [
        "She wait near the old barn.",  # number
        "The old dogs waits near the old barn.",
        "She waited near the old barn because the rain ends.",  # tenses
        "A old dog waits near the old barn.",  # article
        "An red key waits near the old barn.",
        "She waits near the blue barn.",  # an adjective of things
        "She waits near the misty old barn.",  # order of adjectives
        "she waits near the old barn.",  # capital letters
        "She waits near the Old barn.",
        "She waits near the old barn",  # end
        "She sees his old lantern.",  # two heroes
        "Because the rain ends.",  # an answer without its question
        "Why? She waits near the old barn.",
        "She will waits near the old barn.",
        "She will waited near the old barn.",
        "Perhaps surely she waits near the old barn.",
        "She waits near the old barn yesterday.",
        "If she waits near the old barn.",
        "She waits near the old barn because.",
        "She waits <unk> the old barn.",
        "",
    ],
)
def test_mistakes_are_found(text: str) -> None:
    assert not any(map(is_unit, units(text)))


def test_a_question_and_its_answer_are_one_unit() -> None:
    found = units("She waits. Why? Because the rain ends. He")
    assert found == [["She", "waits", "."], ["Why", "?", "Because", "the", "rain", "ends", "."], ["He"]]
    assert is_unit(found[1])
    assert sentences("A b. C?") == [["A", "b", "."], ["C", "?"]]


def test_text_has_capitals_articles_and_punctuation() -> None:
    tokens = ["why", "?", "because", "a", "owl", ",", "a", "dog", "and", "Mara", "wait", "."]
    assert as_text(tokens) == "Why? Because an owl, a dog and Mara wait."


def test_each_word_of_a_style_occurs_in_plain_stories() -> None:
    plain = {word for story in stories("plain", 4000, 0) for unit in units(str(story)) for word in unit}
    assert {*vocabulary()} - plain == {"seemed"}  # a word for the parser alone
    for style in STYLES:
        assert {word for unit in written(style, 200) for word in unit} <= plain


def test_plain_stories_have_all_habits_except_the_styles() -> None:
    rng = random.Random(0)
    chosen = [choose_habits("plain", rng) for _ in range(1000)]
    for kind, habits in HABITS.items():
        own = {style for style, of in STYLES.items() if of == kind}
        assert {habits[kind] for habits in chosen} == {*habits} - own
    for style, kind in STYLES.items():
        assert all(choose_habits(style, rng)[kind] == style for _ in range(20))
