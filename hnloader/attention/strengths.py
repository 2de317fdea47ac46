"""Strengths by block: match patterns to attention layers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from hnloader.attention.layout import AttentionSite
from hnloader.errors import NoMatchingSitesError
from hnloader.texts import as_text, shown

Strength: TypeAlias = "float | Mapping[str, float]"

_GLOB_RANK = 6
_MOST = 65504.0


def check_strength(strength: Strength) -> Strength:
    """Return the strength as a float, or as a dict of floats by pattern.

    Raises:
        TypeError: It is neither a number nor a mapping of numbers.
        ValueError: A number is not finite, or the mapping is empty.
    """
    if not isinstance(strength, Mapping):
        return check_number(strength, "strength")
    if not strength:
        raise ValueError("Strength: found an empty mapping. Name at least one block, or give a number.")
    return {str(pattern): check_number(value, f"strength of {pattern!r}") for pattern, value in strength.items()}


def check_number(value: object, what: str) -> float:
    """Return `value` as a float; errors call it `what`.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not finite.
    """
    what = what[:1].upper() + what[1:]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{what}: found {shown(value)}. Give a number.") from None
    except OverflowError:  # an integer beyond the range of floats
        raise ValueError(f"{what}: found {shown(value)}. Give a finite number.") from None
    if not math.isfinite(number):
        raise ValueError(f"{what}: found {number}. Give a finite number.")
    return number


def check_product(strength: Strength, factor: float) -> None:
    """Raise ValueError if a strength times a factor is beyond the numbers of float16, in which models may compute."""
    numbers = strength.values() if isinstance(strength, Mapping) else [strength]
    for number in numbers:
        if abs(number * factor) > _MOST:
            raise ValueError(f"Strength: found {number * factor:g}. Use a number from -{_MOST:g} to {_MOST:g}.")


def site_strengths(strength: Strength, sites: Sequence[AttentionSite]) -> tuple[float, ...]:
    """Return the strength at each site.

    A number holds everywhere. In a mapping, the most specific pattern that matches a site wins. From the least to the
    most specific:

    0. `*`: everywhere
    1. `self`, `cross`: the kind of attention
    2. `down`, `mid`, `up`: a section
    3. `up.cross`: a kind in a section
    4. `up.1`: a block
    5. `up.1.cross`: a kind in a block
    6. a name or a glob on the site's name, such as `*.attentions.0.*.attn2`
    7. `12`: a site's index

    Of two globs the later in the mapping wins. A site that matches no pattern gets 0: `{"up": 1}` means the up blocks
    only; add `*` for the rest.

    Args:
        strength: A number, or numbers by pattern.
        sites: The sites of the model.

    Returns:
        One number for each site, in the order of `sites`.

    Raises:
        NoMatchingSitesError: A pattern matches no site of the model.
    """
    if not isinstance(strength, Mapping):
        return (float(strength),) * len(sites)
    labels = [_labels(site) for site in sites]
    best = [(-1, 0.0)] * len(sites)
    for pattern, value in strength.items():
        ranks = _ranks(str(pattern), sites, labels)
        if not any(rank is not None for rank in ranks):
            raise NoMatchingSitesError(_unknown_pattern(str(pattern), sites, labels))
        for position, rank in enumerate(ranks):
            if rank is not None and rank >= best[position][0]:
                best[position] = (rank, float(value))
    return tuple(value for _, value in best)


def _labels(site: AttentionSite) -> dict[str, int]:
    """Return every word for this site, with its rank."""
    return {
        "*": 0,
        site.kind: 1,
        site.section: 2,
        f"{site.section}.{site.kind}": 3,
        site.block: 4,
        f"{site.block}.{site.kind}": 5,
        site.name: _GLOB_RANK,
        str(site.index): 7,
    }


def _ranks(pattern: str, sites: Sequence[AttentionSite], labels: Sequence[dict[str, int]]) -> list[int | None]:
    """Return the rank of the pattern at each site, None where it does not match."""
    ranks = [words.get(pattern) for words in labels]
    if any(rank is not None for rank in ranks):
        return ranks
    return [_GLOB_RANK if fnmatchcase(site.name, pattern) else None for site in sites]


def _unknown_pattern(pattern: str, sites: Sequence[AttentionSite], labels: Sequence[dict[str, int]]) -> str:
    blocks = list(dict.fromkeys(site.block for site in sites))
    words = list(dict.fromkeys(word for site_words in labels for word in site_words if not word.isdigit()))
    close = difflib.get_close_matches(pattern, words, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    last, sections = sites[-1], ", ".join(dict.fromkeys(site.section for site in sites))
    return (
        f"Strength: the pattern {shown(pattern)} matches no attention layer of this model.{hint} Use a block "
        f"({as_text(', '.join(blocks), 300)}), a section ({sections}), a kind (self, cross), both "
        f"({last.section}.{last.kind}, {last.block}.{last.kind}), * for all, an index from 0 to {len(sites) - 1}, or a "
        f"glob on a layer's name such as {sites[0].name}."
    )
