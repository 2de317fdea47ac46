"""Rows of values, from the panel or the API, and the tags that they stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hnloader.errors import PromptTagError
from hnloader.prompt import Tag, parse_blocks, parse_prompt
from hnloader.texts import shown

FIELDS = ("enabled", "name", "strength", "block", "start", "end", "k", "v")
NUMBERS = ("strength", "start", "end", "k", "v")

_PIECE = re.compile(r"<[^>]*>|[^<]+|<")
_MOST = 100


@dataclass(frozen=True)
class Row:
    """A row's values by `FIELDS`, and its tag.

    `tag` is None for a disabled row, a row without a name, and an unreadable row, whose `problem` gives the reason.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    tag: Tag | None = None
    problem: str = ""


def read_rows(given: Any) -> list[Row]:
    """Read rows from a text of tags, a list of objects with `FIELDS`, or such a list as JSON.

    Accepts any value: an unreadable row becomes a row with a problem.
    """
    if given is None:
        return []
    if isinstance(given, str):
        text = given.strip()
        if not text.startswith(("[", "{")):
            return _rows_of_tags(text)
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            return [Row(problem=f"The rows cannot be read as JSON: {error}.")]
    if not isinstance(given, list):
        found = "one object" if isinstance(given, dict) else type(given).__name__
        return [
            Row(problem=f"The rows are {found}. Write a list of objects within `args`, [[{{...}}]], or a text of tags.")
        ]
    if len(given) > _MOST:
        return [Row(problem=f"Got {len(given)} rows. Use at most {_MOST}.")]
    return [_row(number, each) for number, each in enumerate(given, 1)]


def tags_of(rows: Sequence[Row]) -> list[Tag]:
    """Return the tags of the enabled rows, in order."""
    return [row.tag for row in rows if row.tag is not None]


def text_of(tags: Sequence[Tag]) -> str:
    """Write tags as in a prompt."""
    return "".join(map(str, tags))


def values_of(tag: Tag) -> dict[str, Any]:
    """Return the values of a row that stands for a tag."""
    block = "+".join(map(str, tag.blocks))
    return {"enabled": True, "name": tag.name, "block": block, **{key: getattr(tag, key) for key in NUMBERS}}


def _rows_of_tags(text: str) -> list[Row]:
    rows = []
    for piece in _PIECE.findall(text):
        if not piece.strip(" \t\r\n,"):
            continue
        try:
            tags = parse_prompt(piece).tags
        except PromptTagError as error:
            rows.append(Row(problem=str(error)))
            continue
        rows += [Row(values_of(tag), tag) for tag in tags]
        if not tags:
            rows.append(Row(problem=f"{shown(piece.strip())} is not a tag. Write <hypernet:name:strength>."))
    return rows


def _row(number: int, given: Any) -> Row:
    if not isinstance(given, dict):
        return Row(problem=f"Row {number}: expected an object with {', '.join(FIELDS)}, got {type(given).__name__}.")
    try:
        return Row(given, _tag(given))
    except PromptTagError as error:
        return Row(given, problem=f"Row {number}: {error}")


def _tag(given: dict[Any, Any]) -> Tag | None:
    """Raise PromptTagError, also for a name that no tag can hold: an infotext must be able to hold every row."""
    unknown = [key for key in given if key not in FIELDS]
    if unknown:
        raise PromptTagError(f"Unknown field {shown(unknown[0])}. Use {', '.join(FIELDS)}.")
    enabled, name, block = given.get("enabled", True), given.get("name"), given.get("block") or ""
    if not isinstance(enabled, bool):
        raise PromptTagError(f"`enabled` is {shown(enabled)}. Use true or false.")
    if not isinstance(name, str) or not isinstance(block, str):
        raise PromptTagError("`name` or `block` is not text. Each row needs a name.")
    if not enabled or not name.strip():
        return None
    numbers = {key: _number(key, given[key]) for key in NUMBERS if given.get(key) is not None}
    tag = Tag(name.strip(), blocks=parse_blocks(name, block) if block.strip() else (), **numbers)
    str(tag)
    return tag


def _number(key: str, value: Any) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise PromptTagError(f"`{key}` is {shown(value, 40)}. Use a number such as 0.8.") from None
