"""A space of drawn styles of stories, to train a predictor on: `python -m lab.demo.stories.drawn_styles --out styles`.

A style is a habit of writing, kept in all units of its stories:

- tenses: those of the main clause and of the inner one, such as "She waited because she sleeps";
- adjectives: none, one, two or some before each kind of noun (persons, animals, things, places, the weather);
- form: what comes before and after the clause, such as a time, a place, a comment, a condition or a reason;
- subjects: the hero by name or by pronoun, others, one or many;
- actions: all kinds, or some of them;
- words: for each part of speech all words, or a few.

The styles that measure a predictor are not in the space. No unit shows any of them, by the words alone: each has a word
in another tense than the past, an adjective, and no place at the sea, and none begins with a hedge or a conjunction.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.demo.stories import words
from lab.demo.stories.grammar import Rules, expand, is_unit, parsed, shared_rules
from lab.demo.stories.story_checker import SHOWN
from lab.demo.stories.writer import UNITS, Story, begin, is_shown

__all__ = ["DrawnStyle", "draw_styles", "drawn_stories", "drawn_style"]

# (main, inner). Past main clauses have an inner clause in another tense.
_TENSES = (
    ("present", "present"),
    ("future", "present"),
    ("present", "past"),
    ("future", "past"),
    ("present", "future"),
    ("past", "present"),
    ("past", "future"),
)
_ADJECTIVES = ("-", "TRAIT", "TRAIT LOOK", "1 - | 1 TRAIT")
_BEFORE = ("-", "-", "TIME ,", "PLACED ,", "COMMENTED", "COMMENT.main", "CONDITIONAL INNER.g ,")
_AFTER = ("-", "-", "TIME", "PLACED", "CONJUNCTION INNER.g", "CONDITIONAL INNER.g")
_FORMS = {
    "said": "BEFORE.g CLAUSE.main.g AFTER.g .",
    "thought": "BEFORE.g SUBJECT.n.g REMEMBER.main.n that CLAUSE.past.g .",
    "belief": "BEFORE.g SUBJECT.n.g THINK.main.n that CLAUSE.inner.g .",
    "reason": "1 CLAUSE.main.g . | 1 why ? WHY INNER.g .",
    "time": "1 CLAUSE.main.g . | 1 when ? WHEN INNER.g .",
}
_FORM_SHARES = (8, 2, 2, 1, 1)
_SUBJECTS = {
    "all": "",
    "name": "SUBJECT.one.g = NAME.g",
    "pronoun": "SUBJECT.one.she = she\nSUBJECT.one.he = he",
    "other": "SUBJECT.one.g = OTHER.one",
    "person": "OTHER.one = ARTICLE OF_PERSON PERSON.one\nOTHER.many = COUNT OF_PERSON PERSON.many",
    "animal": "OTHER.one = ARTICLE OF_ANIMAL ANIMAL.one\nOTHER.many = COUNT OF_ANIMAL ANIMAL.many",
}
_ACTIONS = (
    "REST.t.n MANNER",
    "REST.t.n PLACED",
    "MOVE.t.n TOWARD",
    "HANDLE.t.n THING.g PLACED",
    "MEET.t.n OTHER.any",
    "GIVE.t.n THING.g to OTHER.any",
    "BE.t.n STATE",
    "LOOK.t.n STATE",
)
_NUMBERS = ("n", "n", "one", "many")
# Parts of speech whose words can be few. The symbols of a part, such as PERSON.one and PERSON.many, have one order.
_PARTS = (
    *("REST", "MOVE", "HANDLE", "MEET", "GIVE"),
    *("PERSON", "ANIMAL", "NOUN", "STATE", "WEATHER", "MANNER", "TIME", "NEAR", "TO", "COUNT", "ARTICLE"),
    *("CONDITIONAL", "CONJUNCTION", "COMMENTED"),
    *("PERSON_TRAIT", "ANIMAL_TRAIT", "THING_TRAIT", "PLACE_TRAIT"),
)
_FEW_SHARE, _MOST_FEW = 0.35, 4
_LAND_SHARE, _MOST_PLACES = 0.4, 8
_TRIALS, _MOST_TRIES = 6, 30


@dataclass(frozen=True)
class DrawnStyle:
    """A style of the space.

    Attributes:
        name: What is fixed in it, for people.
        rules: The rules of its units.
        forms: The same rules with all words and places.
    """

    name: str
    rules: Rules
    forms: Rules

    def has_form(self, unit: Sequence[str]) -> bool:
        """Return True if a unit has the form of the style, with any words."""
        return is_unit(unit, rules=self.forms)

    def shows(self, unit: Sequence[str]) -> bool:
        """Return True if a unit is one of the style, by its rules."""
        return is_unit(unit, rules=self.rules)

    def story(self, rng: random.Random, *, validation: bool = False) -> Story | None:
        """Return a random story; None if a unit that shows no named style is hard to find."""
        hero = begin(self.rules, rng, validation=validation)
        body = [unit for _ in range(UNITS) if (unit := _unit(f"UNIT.{hero.gender}", hero.rules, rng)) is not None]
        return hero.story(body) if len(body) == UNITS else None


def _unit(symbol: str, rules: Rules, rng: random.Random) -> list[str] | None:
    for _ in range(_MOST_TRIES):
        unit = expand(symbol, rules, rng)
        if not any(is_shown(style, unit) for style in SHOWN):
            return unit
    return None


def drawn_style(rng: random.Random) -> DrawnStyle:
    """Return a style of the space."""
    while True:
        style = _candidate(rng)
        if all(style.story(rng) is not None for _ in range(_TRIALS)):
            return style


def _candidate(rng: random.Random) -> DrawnStyle:
    (main, inner), (form,) = rng.choice(_TENSES), rng.choices([*_FORMS], _FORM_SHARES)
    before, after, number = rng.choice(_BEFORE), rng.choice(_AFTER), rng.choice(_NUMBERS)
    subject = rng.choice([*_SUBJECTS])
    actions = rng.sample(_ACTIONS, rng.randint(1, 4)) if rng.random() < _FEW_SHARE else _ACTIONS
    kinds = {kind: rng.choice(_ADJECTIVES) for kind in ("PERSON", "ANIMAL", "THING", "PLACE")}
    text = f"""
UNIT.g = {_FORMS[form]}
BEFORE.g = {before}
AFTER.g = {after}
INNER.g = 3 CLAUSE.{inner}.g{"" if inner == "future" else f" | 2 HAPPENS.{inner}"}
CLAUSE.t.g = SUBJECT.{number}.g PREDICATE.t.{number}.g
PREDICATE.t.n.g = {" | ".join(actions)}
OF_WEATHER = {rng.choice(("-", "TRAIT"))}
{_SUBJECTS[subject]}
""" + "\n".join(f"OF_{kind} = {adjectives}" for kind, adjectives in kinds.items())
    text = text.replace(".main", f".{main}").replace(".inner", f".{inner}")
    text = "\n".join(_with_kind(line) for line in text.splitlines())
    rules = shared_rules() | parsed(text)
    forms = rules | {"PLACE": [(1.0, (place,)) for place in words.LAND]}
    few = _few_words(rules, rng)
    places = _places(rng)
    return DrawnStyle(
        f"{main}, {inner}; {form}; {before} ... {after}; {subject}, {number}; {'/'.join(kinds.values())}; "
        f"few {' '.join(few).lower()}",
        rules | {"PLACE": [(1.0, (place,)) for place in places]},
        forms,
    )


def _with_kind(line: str) -> str:
    """Return a rule of adjectives with those of its kind."""
    head, _, body = line.partition(" = ")
    kind = head.removeprefix("OF_")
    return (
        line if kind == head else f"{head} = {body.replace('TRAIT', f'{kind}_TRAIT').replace('LOOK', f'{kind}_LOOK')}"
    )


def _few_words(rules: Rules, rng: random.Random) -> list[str]:
    """Limit some parts of speech to a few words, and return their names."""
    chosen = [part for part in _PARTS if rng.random() < _FEW_SHARE]
    for part in chosen:
        symbols = [symbol for symbol in rules if symbol == part or symbol.startswith(f"{part}.")]
        count = len(rules[symbols[0]])
        kept = sorted(rng.sample(range(count), rng.randint(1, min(_MOST_FEW, count))))
        rules.update({symbol: [rules[symbol][index] for index in kept] for symbol in symbols})
    return chosen


def _places(rng: random.Random) -> Sequence[str]:
    """Return the places of a style: all on land, some of them, or those of a setting."""
    if rng.random() < _LAND_SHARE:
        return words.LAND
    if rng.random() < 0.5:
        return rng.sample(words.LAND, rng.randint(2, _MOST_PLACES))
    return words.SETTINGS[rng.choice([setting for setting in words.SETTINGS if setting != "sea"])]


def drawn_stories(style: DrawnStyle, count: int, seed: object, *, validation: bool = False) -> Iterator[Story]:
    """Yield random stories of a style; see `lab.demo.stories.writer.stories`."""
    rng = random.Random(f"{seed} {validation}")
    while count:
        story = style.story(rng, validation=validation)
        if story is not None:
            count -= 1
            yield story


def draw_styles(folder: Path, styles: int, count: int, seed: int) -> Path:
    """Write random styles, one folder each, with a story in each line of stories.jsonl.

    Args:
        folder: The folder to write to; it is created.
        styles: Number of styles.
        count: Number of stories of each style.
        seed: Seed of the styles and stories.

    Returns:
        The folder.
    """
    for index in range(styles):
        style = drawn_style(random.Random(f"{seed} {index}"))
        place = folder / f"{index:05}"
        place.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"text": str(story)}) for story in drawn_stories(style, count, f"{seed} {index}"))
        (place / "stories.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.stories.drawn_styles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--styles", type=int, default=1200)
    parser.add_argument("--stories", type=int, default=8, help="stories of each style")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    print(draw_styles(chosen.out, chosen.styles, chosen.stories, chosen.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
