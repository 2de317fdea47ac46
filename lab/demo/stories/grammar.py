"""The grammar of the little stories, its writer and its parser.

A story is an opening and four units. A unit is one sentence, or a short question with its answer. The rules have one
line for each symbol: `HEAD = weight symbols | weight symbols`. Capital letters name symbols, other words are those of
the text, and `-` is nothing. `t`, `n` and `g` after a dot stand for all tenses, numbers and genders.

A style is a set of rules that replaces those of the plain stories. The language of the checker has the rules of all.
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
VALUES = {"t": ("present", "past"), "n": ("one", "many"), "g": ("she", "he")}

_PLAIN = """
UNIT.g = 34 CLAUSE.present.g . | 24 CLAUSE.present.g SUB.present.g . | 10 TIME , CLAUSE.present.g .
    | 6 PLACED , CLAUSE.present.g . | 6 CLAUSE.present.g TIME . | 5 IT.present PLACED . | 6 yesterday CLAUSE.past.g .
    | 3 yesterday CLAUSE.past.g SUB.past.g .
    | 7 SUBJECT.n.g REMEMBER.present.n that CLAUSE.past.g . | 5 SUBJECT.n.g THINK.present.n that CLAUSE.present.g .
    | 9 REASON.present.g | 6 DOUBT.g
REASON.t.g = 3 why ? WHY CLAUSE.t.g . | 3 when ? WHEN CLAUSE.t.g . | 2 how long ? LONG CLAUSE.t.g .
    | 1 why ? WHY HAPPENS.t . | 1 when ? WHEN HAPPENS.t . | 1 how long ? LONG HAPPENS.t .
WHY = because | since
WHEN = when | after | before
LONG = until | while
DOUBT.g = 1 where ? UNSURE PLACED . | 1 who ? UNSURE OTHER.one .
UNSURE = perhaps | maybe

SUB.t.g = 3 CONJUNCTION CLAUSE.t.g | 2 CONJUNCTION HAPPENS.t
HAPPENS.t = the OF_WEATHER WEATHER HAPPEN.t.one
IT.t = 1 it BE.t.one CONDITION | 1 it SEEM.t.one CONDITION
CLAUSE.t.g = SUBJECT.n.g PREDICATE.t.n.g
PREDICATE.t.n.g = 12 REST.t.n MANNER | 22 REST.t.n PLACED | 22 MOVE.t.n TOWARD | 14 HANDLE.t.n THING.g
    | 14 HANDLE.t.n THING.g PLACED | 12 MEET.t.n OTHER.any | 8 GIVE.t.n THING.g to OTHER.any | 8 STATED.t.n
STATED.t.n = 2 BE.t.n STATE | 1 SEEM.t.n STATE

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
PLACE = LAND | SEA
MANNER = slowly | quietly | gladly | often | again | alone | softly | together
TIME = in the morning | in the evening | at night | at noon | in spring | in autumn | every day | on holidays
OPENING.g = BEGIN about NAME.g and a TOPIC .
BEGIN = this is a story | here is a tale | I tell a tale | listen to a story
TOPIC = 16 PERSON.one | 13 ANIMAL.one | 30 NOUN
"""
_DESCRIBED = "{0} = 20 - | 60 {1} | 20 {1} {2}"
_BARE = "{0} = -"
_KINDS = ("PERSON", "ANIMAL", "THING", "PLACE")

_STYLES = {
    "past": """
UNIT.g = 34 CLAUSE.past.g . | 24 CLAUSE.past.g SUB.past.g . | 10 TIME , CLAUSE.past.g . | 6 PLACED , CLAUSE.past.g .
    | 6 CLAUSE.past.g TIME . | 5 IT.past PLACED .
""",
    "bare": """
UNIT.g = 34 CLAUSE.present.g . | 24 CLAUSE.present.g SUB.present.g . | 10 TIME , CLAUSE.present.g .
    | 6 PLACED , CLAUSE.present.g . | 6 CLAUSE.present.g TIME .
PREDICATE.t.n.g = 12 REST.t.n MANNER | 22 REST.t.n PLACED | 22 MOVE.t.n TOWARD | 14 HANDLE.t.n THING.g
    | 14 HANDLE.t.n THING.g PLACED | 12 MEET.t.n OTHER.any | 8 GIVE.t.n THING.g to OTHER.any
OF_WEATHER = -
"""
    + "\n".join(_BARE.format(f"OF_{kind}") for kind in _KINDS),
    "reversed": """
UNIT.g = SUB.present.g , CLAUSE.present.g .
""",
    "doubt": """
UNIT.g = 3 HEDGE CLAUSE.present.g . | 2 HEDGE CLAUSE.present.g SUB.present.g .
HEDGE = """
    + " | ".join(words.HEDGES),
    "sea": """
UNIT.g = 34 CLAUSE.present.g . | 24 CLAUSE.present.g SUB.present.g . | 10 TIME , CLAUSE.present.g .
    | 6 PLACED , CLAUSE.present.g . | 6 CLAUSE.present.g TIME . | 5 IT.present PLACED .
PLACE = SEA
""",
}
STYLES = tuple(_STYLES)
# What the checker accepts beyond the plain stories and the styles.
_MORE = """
UNIT.g = REASON.past.g | SUB.t.g , CLAUSE.t.g .
    | HEDGE CLAUSE.t.g . | HEDGE CLAUSE.t.g SUB.t.g . | HEDGE TIME , CLAUSE.t.g . | HEDGE PLACED , CLAUSE.t.g .
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
        "LAND": words.LAND,
        "SEA": words.SEA,
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
        "HAPPEN": words.HAPPENING,
        "REMEMBER": words.REMEMBERING,
        "THINK": words.THINKING,
        "BE": words.BEING,
    }
    for head, forms in verbs.items():
        one, many, past = zip(*forms, strict=True)
        lists |= {f"{head}.present.one": one, f"{head}.present.many": many}
        lists |= {f"{head}.past.one": past, f"{head}.past.many": ("were",) if head == "BE" else past}
    return {head: [(1.0, (word,)) for word in entries] for head, entries in lists.items()}


def _parsed(text: str) -> Rules:
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
def rules_of(style: str = "plain") -> Rules:
    """Return the rules of the plain stories or of a style."""
    described = [_DESCRIBED.format(f"OF_{kind}", f"{kind}_TRAIT", f"{kind}_LOOK") for kind in _KINDS]
    described.append("OF_WEATHER = 3 - | 7 WEATHER_TRAIT")
    plain = _lexicon() | _parsed(_PLAIN) | _parsed("\n".join(described))
    # Eight places of the sea among fifty.
    plain["PLACE"] = [(float(len(words.LAND)), ("LAND",)), (float(len(words.SEA)), ("SEA",))]
    return plain if style == "plain" else plain | _parsed(_STYLES[style])


@functools.cache
def _language() -> dict[str, list[tuple[str, ...]]]:
    """Return the alternatives of each symbol in the checker's language."""
    every = [*(rules_of(style) for style in ("plain", *STYLES)), _parsed(_MORE)]
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


def is_unit(tokens: Sequence[str], head: str = "UNIT") -> bool:
    """Return True if words are a unit of the language, with the right capital letters and articles."""
    plain = _lowered(tokens)
    return plain is not None and any(len(plain) in _ends(f"{head}.{g}", 0, tuple(plain)) for g in VALUES["g"])


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


def _ends(symbol: str, start: int, tokens: tuple[str, ...]) -> frozenset[int]:
    """Return where a symbol that begins at a place can end."""
    known: dict[tuple[str, int], frozenset[int]] = {}

    def ends(symbol: str, start: int) -> frozenset[int]:
        bodies = _language().get(symbol)
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

    return ends(symbol, start)
