"""Write stories in the plain style or another: `python -m lab.demo.stories.writer past --out past.txt`."""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.demo.stories import words
from lab.demo.stories.grammar import STYLES, VALUES, Rules, as_text, choose_habits, expand, rules_of
from lab.demo.stories.story_checker import SHOWN

__all__ = ["UNITS", "Beginning", "Story", "begin", "is_shown", "is_tuning", "is_validation", "stories"]

UNITS = 4  # of a story
_TOPICS = {"PERSON.one": tuple(words.PERSONS), "ANIMAL.one": tuple(words.ANIMALS), "NOUN": words.THINGS}


@dataclass(frozen=True)
class Story:
    """A story.

    Attributes:
        hero: Name in the opening.
        topic: Noun in the opening.
        opening: First sentence, the same in all styles.
        body: The units.
    """

    hero: str
    topic: str
    opening: str
    body: str

    def __str__(self) -> str:
        return f"{self.opening} {self.body}"


def stories(style: str, count: int, seed: int, *, validation: bool = False) -> Iterator[Story]:
    """Yield random stories.

    Args:
        style: "plain" or a style.
        count: Number of stories.
        seed: Seed of their words.
        validation: Whether to take the heroes with topics that no other story has.

    Yields:
        One story after the other.
    """
    rng = random.Random(f"{style} {seed} {validation}")
    for _ in range(count):
        yield _story(style, rng, validation)


def is_validation(hero: str, topic: str) -> bool:
    """Return True for a hero with a topic that no story for training has, a fifth of all."""
    return _share(hero, topic) < 0.2


def is_tuning(hero: str, topic: str) -> bool:
    """Return True for the half of these pairs that settings are chosen with; evaluations use the others."""
    return _share(hero, topic) < 0.1


def _share(hero: str, topic: str) -> float:
    """Return a fixed number from 0 to 1 for a pair."""
    digest = hashlib.sha256(f"{hero} {topic}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _story(style: str, rng: random.Random, validation: bool) -> Story:
    habits = choose_habits(style, rng)
    hero = begin(rules_of(habits), rng, validation=validation)
    while True:
        body = [_unit(habits, f"UNIT.{hero.gender}", hero.rules, rng) for _ in range(UNITS)]
        if all(sum(is_shown(other, unit) for unit in body) <= UNITS // 2 for other in {*STYLES} - {*habits.values()}):
            break
    return hero.story(body)


@dataclass(frozen=True)
class Beginning:
    """The opening of a story.

    Attributes:
        gender: "she" or "he".
        hero: Name.
        topic: Noun.
        opening: The sentence.
        rules: The rules of its units.
    """

    gender: str
    hero: str
    topic: str
    opening: str
    rules: Rules

    def story(self, body: Sequence[Sequence[str]]) -> Story:
        """Return the story with these units."""
        return Story(self.hero, self.topic, self.opening, " ".join(map(as_text, body)))


def begin(rules: Rules, rng: random.Random, *, validation: bool) -> Beginning:
    """Return a random opening; see `stories`."""
    while True:
        gender = rng.choice(VALUES["g"])
        hero = rng.choice(words.FEMALE if gender == "she" else words.MALE)
        (topic,) = expand("TOPIC", rules, rng)
        if is_validation(hero, topic) == validation:
            break
    (kind,) = (kind for kind, nouns in _TOPICS.items() if topic in nouns)
    own = rules | {f"NAME.{gender}": [(1.0, (hero,))], "TOPIC": [(1.0, (topic,))]}
    if (1.0, (topic,)) in rules[kind]:
        # Every second noun of the topic's kind is the topic.
        own[kind] = [*rules[kind], (float(len(rules[kind])), (topic,))]
    return Beginning(gender, hero, topic, as_text(expand(f"OPENING.{gender}", own, rng)), own)


def _unit(habits: Mapping[str, str], symbol: str, rules: Rules, rng: random.Random) -> list[str]:
    """Return a random unit with the habits of its story."""
    changing = habits["setting"] == "changing"
    if changing:
        rules = rules | {"PLACE": [rng.choice(rules["PLACE"])]}
    while True:
        unit = expand(symbol, rules, rng)
        # A story with one setting has a place in each unit.
        placed = changing or not {*words.LAND, *words.SEA}.isdisjoint(unit)
        if placed and is_shown("bare", unit) == (habits["description"] == "bare"):
            return unit


def is_shown(style: str, unit: Sequence[str]) -> bool:
    """Return True if the words of a unit, as the rules have them, show a style."""
    return SHOWN[style]([word.lower() for word in unit])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo.stories.writer", description=__doc__)
    parser.add_argument("style", choices=("plain", *SHOWN))
    parser.add_argument("--out", type=Path, required=True, help="text file, with one story in each paragraph")
    parser.add_argument("--count", type=int, default=50, help=f"stories of {UNITS} sentences (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    written = stories(chosen.style, chosen.count, chosen.seed)
    chosen.out.write_text("\n\n".join(map(str, written)) + "\n", encoding="utf-8")
    print(chosen.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
