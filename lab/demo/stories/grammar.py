"""The grammar of the little stories, its writer and its parser.

A story is an opening and four units. A unit is one sentence, or a short question with its answer. The rules have one
line for each symbol: `HEAD = weight symbols | weight symbols`. Capital letters name symbols, other words are those of
the text, and `-` is nothing. `t`, `n` and `g` after a dot stand for all tenses, numbers and genders.

A story keeps a habit of each kind in all its units. A habit is a set of rules. A style is a habit that no plain story
has. The language of the checker has the rules of all.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from lab.demo.stories import words

Rules: TypeAlias = "dict[str, list[tuple[float, tuple[str, ...]]]]"
VALUES = {"t": ("present", "future", "past"), "n": ("one", "many"), "g": ("she", "he")}

_SHARED = """
REASON.t.g = why ? WHY INNER.t.g . | when ? WHEN INNER.t.g .
WHY = because | since
WHEN = when | after | before | while | until
DOUBT.t.g = who PREDICATE.t.one.g ? UNSURE OTHER.one .
UNSURE = perhaps | maybe

SUB.t.g = 7 CONJUNCTION INNER.t.g | 3 CONDITIONAL INNER.t.g
INNER.present.g = 3 CLAUSE.present.g | 2 HAPPENS.present
INNER.future.g = INNER.present.g
INNER.past.g = 3 CLAUSE.past.g | 2 HAPPENS.past
HAPPENS.t = the OF_WEATHER WEATHER HAPPEN.t.one
THOUGHT.t.g = 1 SUBJECT.n.g REMEMBER.t.n that CLAUSE.past.g | 1 SUBJECT.n.g THINK.t.n that CLAUSE.t.g
IT.present = 1 it BE.present.one CONDITION | 2 it SEEM.present.one CONDITION
IT.future = 1 it BE.future.one CONDITION | 2 it SEEM.future.one CONDITION
IT.past = it BE.past.one CONDITION
CLAUSE.t.g = SUBJECT.n.g PREDICATE.t.n.g
ACTION.t.n.g = 12 REST.t.n MANNER | 24 REST.t.n PLACED | 24 MOVE.t.n TOWARD | 12 HANDLE.t.n THING.g
    | 16 HANDLE.t.n THING.g PLACED | 10 MEET.t.n OTHER.any | 6 GIVE.t.n THING.g to OTHER.any
STATED.t.n = 2 BE.t.n STATE | 1 LOOK.t.n STATE
COMMENT.present = COMMENTED | it happens that
COMMENT.future = COMMENTED | it happens that
COMMENT.past = COMMENTED | it happened that

SUBJECT.one.g = 30 HERO.g | 20 OTHER.one
SUBJECT.many.g = 6 OTHER.many | 4 HERO.g and OTHER.one
HERO.she = 1 NAME.she | 1 she
HERO.he = 1 NAME.he | 1 he
OTHER.one = 1 ARTICLE OF_PERSON PERSON.one | 1 ARTICLE OF_ANIMAL ANIMAL.one
OTHER.many = 1 COUNT OF_PERSON PERSON.many | 1 COUNT OF_ANIMAL ANIMAL.many
OTHER.any = 4 OTHER.one | 1 OTHER.many
THING.g = 4 ARTICLE OF_THING NOUN | 1 OWN.g OF_THING NOUN
OWN.she = her
OWN.he = his
PLACED = NEAR the OF_PLACE PLACE
TOWARD = TO the OF_PLACE PLACE
ARTICLE = 1 a | 1 the
COUNT = two | three | some | the
NEAR = near | beside | behind | by
TO = to | toward | from
MANNER = slowly | quietly | gladly | often | again | alone | softly | together
TIME = in the morning | in the evening | at night | at noon | in spring | in autumn | every day | on holidays
OPENING.g = BEGIN about NAME.g and a TOPIC .
BEGIN = this is a story | here is a tale | I tell a tale | listen to a story
TOPIC = 16 PERSON.one | 13 ANIMAL.one | 30 NOUN
"""


def _begun(lead: str, more: str = "") -> str:
    """Return the rules of units that all begin in one way."""
    return f"""
SAID.t.g = 3 {lead} CLAUSE.t.g . {more}
DATED.g = {lead.replace(".t", ".past")} CLAUSE.past.g yesterday .
"""


def _described(others: str, weather: str, more: str = "") -> str:
    """Return the rules of the adjectives before nouns."""
    kinds = ("PERSON", "ANIMAL", "THING", "PLACE")
    rules = [
        f"OF_{kind} = {others}".replace("TRAIT", f"{kind}_TRAIT").replace("LOOK", f"{kind}_LOOK") for kind in kinds
    ]
    return "\n".join((*rules, f"OF_WEATHER = {weather}".replace("TRAIT", "WEATHER_TRAIT"), _ACTIONS + more))


_ACTIONS = """
PREDICATE.t.n.g = ACTION.t.n.g
SCENE.t.g = CLAUSE.t.g
"""
_STATES = """
PREDICATE.t.n.g = 92 ACTION.t.n.g | 8 STATED.t.n
SCENE.t.g = IT.t PLACED
"""

# The habits of each kind, as (share among plain stories, rules). A style has the share 0.
HABITS: dict[str, dict[str, tuple[float, str]]] = {
    "tense": {
        "present": (3, "UNIT.g = SAID.present.g"),
        "future": (3, "UNIT.g = SAID.future.g"),
        "changing": (4, "UNIT.g = 3 SAID.present.g | 3 SAID.future.g | 4 DATED.g"),
        "past": (0, "UNIT.g = SAID.past.g"),
    },
    "description": {
        "some": (2, _described("30 - | 50 TRAIT | 20 TRAIT LOOK", "3 - | 7 TRAIT", _STATES)),
        "few": (2, _described("6 - | 4 TRAIT", "6 - | 4 TRAIT")),
        "one": (1, _described("TRAIT", "TRAIT")),
        "two": (1, _described("TRAIT LOOK", "TRAIT")),
        "bare": (0, _described("-", "-")),
    },
    "beginning": {
        "free": (
            3,
            """
SAID.t.g = 30 CLAUSE.t.g . | 20 CLAUSE.t.g SUB.t.g . | 8 TIME , CLAUSE.t.g . | 6 PLACED , CLAUSE.t.g .
    | 6 CLAUSE.t.g TIME . | 9 SCENE.t.g . | 10 THOUGHT.t.g . | 10 REASON.t.g | 8 DOUBT.t.g
DATED.g = yesterday CLAUSE.past.g . | yesterday CLAUSE.past.g SUB.past.g . | CLAUSE.past.g yesterday .
    | yesterday THOUGHT.past.g .
""",
        ),
        "subject": (1, _begun("", "| 2 CLAUSE.t.g SUB.t.g . | CLAUSE.t.g TIME . | THOUGHT.t.g .")),
        "time": (1, _begun("TIME ,", "| 2 TIME , CLAUSE.t.g SUB.t.g .")),
        "place": (1, _begun("PLACED ,", "| 2 PLACED , CLAUSE.t.g SUB.t.g .")),
        "comment": (1, _begun("COMMENT.t", "| 2 COMMENT.t CLAUSE.t.g SUB.t.g .")),
        "condition": (1, _begun("CONDITIONAL INNER.t.g ,")),
        "doubt": (0, _begun("HEDGE", "| 2 HEDGE CLAUSE.t.g SUB.t.g .")),
        "reversed": (0, _begun("CONJUNCTION INNER.t.g ,")),
    },
    "setting": {
        # Each unit has another setting, at most two units of a story the sea.
        "changing": (5, "\n".join(f"PLACE = {setting.upper()}" for setting in words.SETTINGS)),
        **{setting: (float(setting != "sea"), f"PLACE = {setting.upper()}") for setting in words.SETTINGS},
    },
}
STYLES = {name: kind for kind, habits in HABITS.items() for name, (share, _) in habits.items() if not share}
# What the checker accepts beyond the plain stories and the styles.
_MORE = """
IT.past = it SEEM.past.one CONDITION
SAID.t.g = HEDGE TIME , CLAUSE.t.g . | HEDGE PLACED , CLAUSE.t.g . | HEDGE THOUGHT.t.g .
"""


def _lexicon() -> Rules:
    """Return the rules of the parts of speech, whose words are equally frequent."""
    lists: dict[str, Iterable[str]] = {
        "NAME.she": words.FEMALE,
        "NAME.he": words.MALE,
        "PERSON.one": words.PERSONS,
        "PERSON.many": words.PERSONS.values(),
        "ANIMAL.one": words.ANIMALS,
        "ANIMAL.many": words.ANIMALS.values(),
        "NOUN": words.THINGS,
        "WEATHER": words.WEATHER,
        "STATE": words.STATES,
        "CONDITION": words.CONDITIONS,
        "CONJUNCTION": words.CONJUNCTIONS,
        **{setting.upper(): places for setting, places in words.SETTINGS.items()},
        "CONDITIONAL": words.CONDITIONALS,
        "COMMENTED": words.COMMENTS,
        "PERSON_TRAIT": words.PERSON_TRAITS,
        "PERSON_LOOK": words.PERSON_ORIGINS,
        "ANIMAL_TRAIT": words.ANIMAL_TRAITS,
        "ANIMAL_LOOK": words.ANIMAL_COLORS,
        "THING_TRAIT": words.THING_TRAITS,
        "THING_LOOK": words.THING_COLORS,
        "PLACE_TRAIT": words.PLACE_TRAITS,
        "PLACE_LOOK": words.PLACE_LOOKS,
        "WEATHER_TRAIT": words.WEATHER_TRAITS,
    }
    verbs = {
        "REST": words.RESTING,
        "MOVE": words.MOVING,
        "HANDLE": words.HANDLING,
        "MEET": words.MEETING,
        "GIVE": words.GIVING,
        "SEEM": words.SEEMING,
        "LOOK": words.LOOKING,
        "HAPPEN": words.HAPPENING,
        "REMEMBER": words.REMEMBERING,
        "THINK": words.THINKING,
        "BE": words.BEING,
    }
    for head, forms in verbs.items():
        one, many, past = zip(*forms, strict=True)
        lists |= {f"{head}.present.one": one, f"{head}.present.many": many}
        lists |= {f"{head}.past.one": past, f"{head}.past.many": ("were",) if head == "BE" else past}
        lists |= {f"{head}.future.{number}": [f"will {form}" for form in many] for number in VALUES["n"]}
    lists |= {f"BE.future.{number}": ["will be"] for number in VALUES["n"]} | {"HEDGE": words.HEDGES}
    return {head: [(1.0, tuple(entry.split())) for entry in entries] for head, entries in lists.items()}


def parsed(text: str) -> Rules:
    """Return the rules of a text, with all values of their letters."""
    rules: Rules = {}
    for line in re.sub(r"\n +", " ", text.strip()).splitlines():
        if not line:
            continue
        head, alternatives = line.split(" = ")
        for alternative in alternatives.split(" | "):
            weight, *symbols = alternative.split() if alternative[0].isdigit() else ("1", *alternative.split())
            letters = sorted({part for symbol in (head, *symbols) for part in symbol.split(".")[1:]} & set(VALUES))
            for values in itertools.product(*(VALUES[letter] for letter in letters)):
                chosen = dict(zip(letters, values, strict=True))
                own, *body = (_filled(symbol, chosen) for symbol in (head, *symbols))
                rules.setdefault(own, []).append((float(weight), tuple(s for s in body if s != "-")))
    return rules


def _filled(symbol: str, values: Mapping[str, str]) -> str:
    first, *parts = symbol.split(".")
    return ".".join((first, *(values.get(part, part) for part in parts))) if first else symbol


@functools.cache
def _rules(kind: str, habit: str) -> Rules:
    return parsed(HABITS[kind][habit][1])


@functools.cache
def shared_rules() -> Rules:
    """Return the rules of all stories, without those of their habits."""
    return _lexicon() | parsed(_SHARED)


def choose_habits(style: str, rng: random.Random) -> dict[str, str]:
    """Return a random habit of each kind for a story, "plain" or in a style."""
    chosen = {}
    for kind, habits in HABITS.items():
        shares = [share for share, _ in habits.values()]
        (chosen[kind],) = [style] if STYLES.get(style) == kind else rng.choices([*habits], shares)
    return chosen


def rules_of(habits: Mapping[str, str]) -> Rules:
    """Return the rules of a story with a habit of each kind."""
    found = dict(shared_rules())
    for kind, habit in habits.items():
        found |= _rules(kind, habit)
    return found


@functools.cache
def _language() -> dict[str, list[tuple[str, ...]]]:
    """Return the alternatives of each symbol in the checker's language."""
    every = [
        shared_rules(),
        *(_rules(kind, habit) for kind, habits in HABITS.items() for habit in habits),
        parsed(_MORE),
    ]
    found: dict[str, dict[tuple[str, ...], None]] = {}
    for rules in every:
        for head, alternatives in rules.items():
            found.setdefault(head, {}).update(dict.fromkeys(body for _, body in alternatives))
    return {head: list(bodies) for head, bodies in found.items()}


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Return all words of all stories; one that begins a sentence has a capital letter."""
    language, known, found = _language(), set[tuple[str, bool]](), {"an", "An"}

    def walk(symbol: str, begins: bool) -> None:
        if symbol not in language:
            found.add(_capital(symbol) if begins else symbol)
        elif (symbol, begins) not in known:
            known.add((symbol, begins))
            for body in language[symbol]:
                for before, item in zip(("", *body), body, strict=False):
                    walk(item, before == "?" or (begins and not before))

    for head in ("UNIT", "OPENING"):
        for gender in VALUES["g"]:
            walk(f"{head}.{gender}", True)
    return tuple(sorted(found))


def _capital(word: str) -> str:
    return word[0].upper() + word[1:]


# -- writing


def expand(symbol: str, rules: Rules, rng: random.Random) -> list[str]:
    """Return random words of a symbol."""
    if symbol not in rules:
        return [symbol]
    weights, bodies = zip(*rules[symbol], strict=True)
    (body,) = rng.choices(bodies, weights)
    return [word for item in body for word in expand(item, rules, rng)]


def as_text(tokens: Sequence[str]) -> str:
    """Return words as text, with capital letters, "an" before vowels, and no space before punctuation."""
    written: list[str] = []
    for index, word in enumerate(tokens):
        if word == "a" and index + 1 < len(tokens) and tokens[index + 1][0] in "aeiou":
            word = "an"
        if not written or written[-1][-1] in ".?":
            word = _capital(word)
        if word in (",", ".", "?"):
            written[-1] += word
        else:
            written.append(word)
    return " ".join(written)


# -- parsing


def sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence of a text; the last sentence can lack its end."""
    found: list[list[str]] = [[]]
    for word in re.findall(r"[\w<>|]+|[^\w\s]", text):
        found[-1].append(word)
        if word in (".", "?"):
            found.append([])
    return found if found[-1] else found[:-1]


def units(text: str) -> list[list[str]]:
    """Return the words of each unit of a text: a sentence, or a question with the sentence after it."""
    found: list[list[str]] = []
    for sentence in sentences(text):
        if found and found[-1][-1] == "?":
            found[-1] += sentence
        else:
            found.append(sentence)
    return found


def is_unit(tokens: Sequence[str], head: str = "UNIT", rules: Rules | None = None) -> bool:
    """Return True if words are a unit of some rules, with the right capital letters and articles.

    Args:
        tokens: The words.
        head: The symbol of the unit, without its gender.
        rules: The rules. Default: those of all habits.
    """
    language = (
        _language() if rules is None else {symbol: [body for _, body in found] for symbol, found in rules.items()}
    )
    plain = _lowered(tokens)
    return plain is not None and any(len(plain) in _ends(f"{head}.{g}", tuple(plain), language) for g in VALUES["g"])


def _lowered(tokens: Sequence[str]) -> list[str] | None:
    """Return words as the rules have them; None for a wrong capital letter or article."""
    lowered: list[str] = []
    for index, word in enumerate(tokens):
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        article = word.lower() in ("a", "an")
        if article and (word.lower() == "an") != (following[:1] in tuple("aeiou")):
            return None
        begins = index == 0 or tokens[index - 1] in (".", "?")
        kept = word in words.NAMES or word == "I"
        if not kept and word[:1].isupper() != begins:
            return None
        word = "a" if article else word
        lowered.append(word if kept else word.lower())
    return lowered


def _ends(symbol: str, tokens: tuple[str, ...], language: Mapping[str, Sequence[tuple[str, ...]]]) -> frozenset[int]:
    """Return where a symbol that begins with the first word can end."""
    known: dict[tuple[str, int], frozenset[int]] = {}

    def ends(symbol: str, start: int) -> frozenset[int]:
        bodies = language.get(symbol)
        if bodies is None:
            return frozenset({start + 1}) if tokens[start : start + 1] == (symbol,) else frozenset()
        if (symbol, start) not in known:
            found: set[int] = set()
            for body in bodies:
                reached = {start}
                for item in body:
                    reached = {end for place in reached for end in ends(item, place)}
                found |= reached
            known[symbol, start] = frozenset(found)
        return known[symbol, start]

    return ends(symbol, 0)
