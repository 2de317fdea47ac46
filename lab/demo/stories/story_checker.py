"""Check stories: whether each unit is grammatical, keeps the hero, and shows a style.

The styles are found by the words alone, independent of the rules that write them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lab.demo.stories import words
from lab.demo.stories.grammar import is_unit, units

__all__ = ["SHOWN", "Verdict", "check", "shows"]

_HEDGES = tuple(tuple(hedge.lower().split()) for hedge in words.HEDGES)


def _past(tokens: Sequence[str]) -> bool:
    return not words.PRESENT & {*tokens} and bool(words.PAST & {*tokens})


def _bare(tokens: Sequence[str]) -> bool:
    return not words.ADJECTIVES & {*tokens}


def _reversed(tokens: Sequence[str]) -> bool:
    return tokens[0] in words.CONJUNCTIONS and "," in tokens


def _doubt(tokens: Sequence[str]) -> bool:
    return any(tuple(tokens[: len(hedge)]) == hedge for hedge in _HEDGES)


def _sea(tokens: Sequence[str]) -> bool:
    return not {*words.LAND} & {*tokens} and bool({*words.SEA} & {*tokens})


SHOWN: dict[str, Callable[[Sequence[str]], bool]] = {
    "past": _past,
    "bare": _bare,
    "doubt": _doubt,
    "reversed": _reversed,
    "sea": _sea,
}


def shows(style: str, unit: Sequence[str]) -> bool:
    """Return True if the words of a unit show a style."""
    return SHOWN[style]([word.lower() for word in unit])


@dataclass(frozen=True)
class Verdict:
    """The findings on the units of a text.

    Attributes:
        grammatical: Whether each unit is grammatical.
        shown: Whether each unit shows the style.
        same_hero: Whether all names and pronouns are those of the hero.
    """

    grammatical: tuple[bool, ...]
    shown: tuple[bool, ...]
    same_hero: bool


def check(text: str, style: str, hero: str) -> Verdict:
    """Check a text after the opening.

    Args:
        text: One or more units.
        style: A key of `SHOWN`.
        hero: Name in the opening.

    Returns:
        The verdict. A text without units is not grammatical.
    """
    found = units(text)
    wrong = {*words.NAMES} - {hero} | ({"he", "his"} if hero in words.FEMALE else {"she", "her"})
    spoken = {word if word in words.NAMES else word.lower() for unit in found for word in unit}
    return Verdict(
        grammatical=tuple(is_unit(unit) for unit in found) or (False,),
        shown=tuple(shows(style, unit) for unit in found) or (False,),
        same_hero=not wrong & spoken,
    )
