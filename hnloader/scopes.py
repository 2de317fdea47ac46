"""Scopes: the attention sites that a pair of sides is for.

A scope is a context width, optionally with a kind of attention and with numbers of sites. Its text has one spelling:
`768` is every site of width 768, `768:self` every self-attention site of it, `768:0-7` the sites 0 to 7,
`768:self:0-30/2` every second one from 0 to 30, and `768:0,3,12-` the sites 0, 3 and all from 12 on. Sites are numbered
in the order in which they run; docs/format.md has the rules.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hnloader.texts import shown

__all__ = ["MOST_SCOPES", "MOST_SITES", "Kind", "Scope", "ScopeLike", "as_scope", "check_apart", "refined"]

Kind = Literal["self", "cross"]
KINDS: tuple[Kind, Kind] = ("self", "cross")
MOST_SITES = 1000
MOST_SCOPES = 1024  # of one hypernetwork
_LONGEST = 4096  # characters; the worst set of numbers takes less
# Scopes that several hypernetworks have together; the deepest models have some 200 sites.
MOST_TOGETHER = 256

_NUMBER = r"(?:0|[1-9][0-9]{0,2})"
_ITEM = re.compile(rf"({_NUMBER})(?:(-)({_NUMBER})?(?:/({_NUMBER}))?)?")
_TEXT = re.compile(r"([1-9][0-9]{0,6})(?::(self|cross))?(?::([0-9,/-]+))?")
_EVERY = -1
_NUMBERED = (1 << MOST_SITES) - 1


@dataclass(frozen=True)
class Scope:
    """The attention sites that a pair of sides is for.

    Attributes:
        width: Width of the contexts.
        kind: `self` or `cross` for one kind of attention; None for both. Default: None.
        sites: Numbers of the sites, as the bits of an integer that are 1. A negative integer has all bits from some
            place on. Default: -1, all sites.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> from hnloader import Scope
        >>> Scope.of(576, range(0, 30, 2), "self")
        Scope('576:self:0-28/2')
        >>> Scope.parse("576:8-").holds(576, "self", 29)
        True
    """

    width: int
    kind: Kind | None = None
    sites: int = _EVERY

    def __post_init__(self) -> None:
        if self.kind not in (None, *KINDS):
            raise ValueError(f"Kind of a scope: found {shown(self.kind)}. Use 'self', 'cross' or None.")
        if self.sites & _NUMBERED == 0 or self.sites >> MOST_SITES not in (0, -1):
            raise ValueError(
                f"Sites of a scope: found no numbers, or one of {MOST_SITES:,} and more. Use smaller ones."
            )

    @classmethod
    def of(cls, width: int, numbers: Iterable[int], kind: Kind | None = None) -> Scope:
        """Return the scope of some sites.

        Args:
            width: Width of the contexts.
            numbers: Numbers of the sites, in any order.
            kind: `self` or `cross` for one kind of attention. Default: None, both.

        Returns:
            The scope.

        Raises:
            ValueError: The numbers are missing, or one is out of range.
        """
        sites = 0
        for number in numbers:
            if not 0 <= number < MOST_SITES:
                raise ValueError(f"Site {shown(number)}: sites have numbers from 0 to {MOST_SITES - 1}. Use these.")
            sites |= 1 << number
        return cls(width, kind, sites)

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Return the scope of a text. Every scope has only one text.

        Args:
            text: Text such as `768`, `768:cross`, `768:0-7` or `768:self:0-30/2,31`.

        Returns:
            The scope.

        Raises:
            ValueError: The text is malformed, or not the text of its scope.
        """
        match = _TEXT.fullmatch(text) if len(text) <= _LONGEST else None
        if match is None:
            raise ValueError(f"Scope {shown(text, 100)}: expected a text such as '768', '768:self' or '768:0-7'.")
        kind: Kind | None = "self" if match[2] == "self" else "cross" if match[2] else None
        found = cls(int(match[1]), kind, _EVERY if match[3] is None else _sites_in(match[3]))
        if str(found) != text:
            raise ValueError(f"Scope {shown(text, 100)}: the text is unusual. Write {shown(str(found), 100)}.")
        return found

    def holds(self, width: int, kind: Kind, number: int) -> bool:
        """Return True for a site of the scope.

        Args:
            width: Width of its contexts.
            kind: Its kind of attention.
            number: Its number in the model.

        Returns:
            Whether the pair of sides is for it.
        """
        return self.width == width and self.kind in (None, kind) and bool(self.sites >> number & 1)

    @property
    def whole(self) -> bool:
        """True for every site of the width."""
        return self.kind is None and self.sites == _EVERY

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers that the text names: all, but of "8-" only 8."""
        first = _rest(self.sites)
        listed = _bits(self.sites if first is None else self.sites & ((1 << first) - 1))
        return tuple(listed) if not first else (*listed, first)

    @property
    def label(self) -> str:
        """Name in messages: `width 768`, `scope 768:0-7`."""
        return f"width {self.width}" if self.whole else f"scope {self}"

    def __str__(self) -> str:
        words = [str(self.width)]
        if self.kind is not None:
            words.append(self.kind)
        if self.sites != _EVERY:
            words.append(_sites_text(self.sites))
        return ":".join(words)

    def __repr__(self) -> str:
        return f"Scope({str(self)!r})"


ScopeLike: TypeAlias = "Scope | int | str"


def as_scope(value: ScopeLike) -> Scope:
    """Return a scope, the scope of a whole width, or that of a text. Raises ValueError for another text."""
    if isinstance(value, Scope):
        return value
    return Scope.parse(value) if isinstance(value, str) else Scope(value)


def check_apart(scopes: Collection[Scope]) -> None:
    """Raise ValueError if two scopes of a hypernetwork have a site in common, since a site takes one pair of sides.

    Too many scopes are an error as well.
    """
    if len(scopes) > MOST_SCOPES:
        raise ValueError(f"Found {len(scopes):,} scopes, more than {MOST_SCOPES:,}. Use fewer.")
    taken: dict[tuple[int, Kind], int] = defaultdict(int)
    for scope in scopes:
        for kind in KINDS if scope.kind is None else (scope.kind,):
            if taken[scope.width, kind] & scope.sites:
                raise ValueError(
                    f"{scope.label[0].upper()}{scope.label[1:]}: another scope has a site of it. Remove one."
                )
            taken[scope.width, kind] |= scope.sites


def refined(groups: Sequence[Sequence[Scope]]) -> dict[Scope, tuple[Scope | None, ...]]:
    """Return the scopes that hypernetworks have together: each site of one has the same scopes in all of them.

    Args:
        groups: The scopes of each hypernetwork, without a site in common.

    Returns:
        For each scope, its container in every group, or None.

    Raises:
        ValueError: There are more than `MOST_TOGETHER`.
    """
    if len({scope for scopes in groups for scope in scopes}) > MOST_TOGETHER:
        raise ValueError(_TOO_MANY)
    found: dict[Scope, tuple[Scope | None, ...]] = {}
    for width in dict.fromkeys(scope.width for scopes in groups for scope in scopes):
        cells = {kind: _cells(groups, width, kind) for kind in KINDS}
        for within in dict.fromkeys(within for kind in KINDS for within in cells[kind]):
            own, other = (cells[kind].get(within, 0) for kind in KINDS)
            if own == other:
                found[Scope(width, None, own)] = within
                continue
            for kind, sites in zip(KINDS, (own, other), strict=True):
                if sites:
                    found[Scope(width, kind, sites)] = within
    if len(found) > MOST_TOGETHER:
        raise ValueError(_TOO_MANY)
    return found


_TOO_MANY = f"The files have more than {MOST_TOGETHER} scopes together. Use files with the same scopes."


def _cells(groups: Sequence[Sequence[Scope]], width: int, kind: Kind) -> dict[tuple[Scope | None, ...], int]:
    """Return the sites of a width and kind by the scopes that hold them."""
    cells: dict[tuple[Scope | None, ...], int] = {(): _EVERY}
    for scopes in groups:
        acting = [scope for scope in scopes if scope.width == width and scope.kind in (None, kind)]
        split: dict[tuple[Scope | None, ...], int] = {}
        for within, sites in cells.items():
            rest = functools.reduce(lambda left, scope: left & ~scope.sites, acting, sites)
            parts = [*((scope, sites & scope.sites) for scope in acting), (None, rest)]
            split |= {(*within, scope): part for scope, part in parts if part & _NUMBERED}
        if len(split) > 2 * MOST_TOGETHER:
            raise ValueError(_TOO_MANY)
        cells = split
    return {within: sites for within, sites in cells.items() if any(within)}


# -- texts of sets of sites


def _sites_in(text: str) -> int:
    """Return the sites of a text such as `0-7,12-`. Raises ValueError."""
    sites = 0
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if match is None or (match[3] is None and match[4] is not None):
            raise ValueError(
                f"Sites {shown(text, 100)}: expected a list of items such as '3', '0-7', '0-30/2' or '8-'."
            )
        first, last, step = int(match[1]), int(match[3] or match[1]), int(match[4] or 1)
        if match[2] and match[3] is None:
            sites |= -1 << first
        elif first > last or step == 0:
            raise ValueError(f"Sites {shown(item)}: expected a smaller number before a larger one, and a step above 0.")
        elif step == 1:
            sites |= ((1 << last - first + 1) - 1) << first
        else:
            for number in range(first, last + 1, step):
                sites |= 1 << number
    return sites


@functools.lru_cache(1024)
def _sites_text(sites: int) -> str:
    """Return the text of a set of sites: from the first on, the longest run with equal steps, if it has three."""
    first = _rest(sites)
    numbers = list(_bits(sites if first is None else sites & ((1 << first) - 1)))
    items, at = [], 0
    while at < len(numbers):
        end = _end_of_run(numbers, at)
        if end - at < 3:
            items.append(f"{numbers[at]}")
            at += 1
            continue
        step = numbers[at + 1] - numbers[at]
        items.append(f"{numbers[at]}-{numbers[end - 1]}" + ("" if step == 1 else f"/{step}"))
        at = end
    if first is not None:
        items.append(f"{first}-")
    return ",".join(items)


def _end_of_run(numbers: Sequence[int], at: int) -> int:
    """Return the place after the numbers with equal steps that begin at a place."""
    end = at + 2
    while end < len(numbers) and numbers[end] - numbers[end - 1] == numbers[at + 1] - numbers[at]:
        end += 1
    return min(end, len(numbers))


def _bits(sites: int) -> Iterator[int]:
    return (number for number in range(sites.bit_length()) if sites >> number & 1)


def _rest(sites: int) -> int | None:
    """Return the first number from which on all are in the set; None for a set with an end."""
    return (~sites).bit_length() if sites < 0 else None
