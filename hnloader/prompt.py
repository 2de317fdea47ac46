"""Hypernetworks named in a prompt: `<hypernet:name:strength>` and its options.

One grammar for the prompt, for the command line's `--hypernet`, and for hosts that split a tag at its colons:

    <hypernet:style>                                     strength 1
    <hypernet:style:0.8>
    <hypernet:style:0.8:start=0.2,end=0.8>               only between 20 % and 80 % of the sampling
    <hypernet:style:0.8:block=up>                        only in the up blocks
    <hypernet:style:0.8:block=mid+up@0.5:k=1:v=0.5>      mid at full strength, up at half; the v side at half

Options are separated by commas or by colons, which mean the same. What follows the strength without `=` is ignored,
as the webuis' built-in hypernetworks do: `<hypernet:ink:0.8:0.5>` has the strength 0.8. A name ends at the first
colon and may hold anything else (spaces, commas, dots, `/` for subfolders). A name with a colon is put in double
quotes, and a double quote within them is doubled: `<hypernet:"12:30":0.8>`. A Windows drive (`C:/styles/ink.pt`)
needs no quotes. No tag can hold `>`, which ends it in every program that reads tags.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hnloader.errors import PromptTagError
from hnloader.texts import shown

OPTIONS = ("block", "start", "end", "k", "v")

_TAG = re.compile(r"<(\w+):([^>]+)>")
_KIND = "hypernet"
_QUOTED_NAME = re.compile(r'"((?:[^"]|"")*)"\s*(?::(.*))?', re.DOTALL)
_DRIVE_NAME = re.compile(r"([A-Za-z]:[\\/][^:]*)(?::(.*))?", re.DOTALL)
_PLAIN_NAME = re.compile(r"([^:]*)(?::(.*))?", re.DOTALL)
_NAME_NEEDS_QUOTES = re.compile(r'^\s|^"|:|\s$')
_BLOCK_NAME = re.compile(r"[^\s:,+@=<>\"]+")


@dataclass(frozen=True)
class BlockWeight:
    """A part of the model in a tag's `block=` option and the factor on the tag's strength there."""

    block: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.block if self.weight == 1.0 else f"{self.block}@{format_number(self.weight)}"


@dataclass(frozen=True)
class Tag:
    """One hypernetwork as a user asks for it.

    `strength` is any finite number. `blocks` empty means everywhere; otherwise blocks that are not named get
    none of it. `start` and `end` are fractions of the sampling, 0 <= start < end <= 1. `k` and `v` are
    factors on the strength of one side. Raises PromptTagError where a value is outside these.
    """

    name: str
    strength: float = 1.0
    blocks: tuple[BlockWeight, ...] = ()
    start: float = 0.0
    end: float = 1.0
    k: float = 1.0
    v: float = 1.0

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise PromptTagError("A hypernet tag names no hypernetwork. Write <hypernet:name:strength>.")
        numbers = {"strength": self.strength, "start": self.start, "end": self.end, "k": self.k, "v": self.v}
        numbers |= {f"the factor of block {part.block}": part.weight for part in self.blocks}
        for what, value in numbers.items():
            if not is_finite(value):
                raise PromptTagError(f"Hypernetwork {shown(self.name)}: {what} is {shown(value)}, not a finite number.")
        if not 0.0 <= self.start < self.end <= 1.0:
            window = f"start={format_number(self.start)} and end={format_number(self.end)}"
            raise PromptTagError(
                f"Hypernetwork {shown(self.name)}: {window} are fractions of the sampling: 0 <= start < end <= 1."
            )
        for part in self.blocks:
            if not _BLOCK_NAME.fullmatch(part.block):
                raise PromptTagError(
                    f"Hypernetwork {shown(self.name)}: {shown(part.block)} cannot be a block. "
                    "Write block=up, or several as block=mid+up@0.5."
                )
        names = [part.block for part in self.blocks]
        if len(set(names)) < len(names):
            raise PromptTagError(f"Hypernetwork {shown(self.name)}: block={'+'.join(names)} names a block twice.")

    def options(self) -> str:
        """The options that differ from their defaults, e.g. `block=up,start=0.2`."""
        given = []
        if self.blocks:
            given.append("block=" + "+".join(map(str, self.blocks)))
        given += [f"start={format_number(self.start)}"] if self.start != 0.0 else []
        given += [f"end={format_number(self.end)}"] if self.end != 1.0 else []
        given += [f"k={format_number(self.k)}"] if self.k != 1.0 else []
        given += [f"v={format_number(self.v)}"] if self.v != 1.0 else []
        return ",".join(given)

    def __str__(self) -> str:
        """The tag as text, as `parse_prompt` reads it. Raises PromptTagError for a name that holds `>`."""
        if ">" in self.name:
            raise PromptTagError(
                f"{shown(self.name)} cannot be written as a tag, because '>' ends a tag. Rename the file."
            )
        name = self.name
        if _NAME_NEEDS_QUOTES.search(name):
            name = '"' + name.replace('"', '""') + '"'
        options = self.options()
        return f"<{_KIND}:{name}:{format_number(self.strength)}{':' if options else ''}{options}>"


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its hypernet tags, and the tags in the order in which they stood."""

    prompt: str
    tags: tuple[Tag, ...]


def is_finite(value: float) -> bool:
    """Tell whether a number is one that a float can be; an integer can be too large for it."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def format_number(value: float) -> str:
    """The shortest text that reads back as the same finite number: 0.5, 1, -2, 1e-07. Never holds a `+`."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value)).replace("e+", "e")


def parse_prompt(prompt: str) -> ParsedPrompt:
    """Take the hypernet tags out of a prompt, as the webuis do: a tag leaves no trace, the rest is untouched.

    Tags of other kinds (`<lora:...>`) stay where they are. The same hypernetwork may be named several times.
    Raises PromptTagError, and nothing else, for a hypernet tag that cannot be read.
    """
    tags: list[Tag] = []

    def take(match: re.Match[str]) -> str:
        if match[1] != _KIND:
            return match[0]
        tags.append(parse_tag(match[2]))
        return ""

    tagged, rest = _may_hold_tags(prompt)
    return ParsedPrompt(_TAG.sub(take, tagged) + rest, tuple(tags))


def tag_bodies(prompt: str) -> list[str]:
    """What stands between `<hypernet:` and `>` in each hypernet tag of a prompt, readable or not."""
    return [match[2] for match in _TAG.finditer(_may_hold_tags(prompt)[0]) if match[1] == _KIND]


def other_tags(prompt: str) -> list[str]:
    """The tags in a prompt that are not for hypernetworks, e.g. `<lora:x:1>`."""
    return [match[0] for match in _TAG.finditer(_may_hold_tags(prompt)[0]) if match[1] != _KIND]


def _may_hold_tags(prompt: str) -> tuple[str, str]:
    """The part up to the last `>`, and the rest, in which many a `<a:` would each be followed to the end in vain."""
    end = prompt.rfind(">") + 1
    return prompt[:end], prompt[end:]


def parse_items(items: Sequence[str]) -> Tag:
    """Read a tag that a host has already split at its colons (the webuis' `params.items`)."""
    return parse_tag(":".join(items))


def parse_tag(body: str) -> Tag:
    """Read what stands between `<hypernet:` and `>`: a name, a strength, options.

    The command line's `--hypernet` values are read by this too. Raises PromptTagError.
    """
    name, rest = _split_name(body)
    first, *others = ["1"] if rest is None else rest.split(":")
    items = [item.strip() for item in first.split(",")]
    strength = 1.0
    if "=" not in items[0]:
        strength = _number(name, "the strength", items.pop(0))
        others = [other for other in others if "=" in other]
    items += [item.strip() for other in others for item in other.split(",")]
    given: dict[str, str] = {}
    for item in items:
        option, equals, value = (part.strip() for part in item.partition("="))
        option = option.lower()
        if not equals:
            hint = " Write decimals with a point." if _is_number(item) else ""
            raise PromptTagError(f"Hypernetwork {shown(name)}: {shown(item)} is not an option (option=value).{hint}")
        if option not in OPTIONS:
            raise PromptTagError(
                f"Hypernetwork {shown(name)}: there is no option {shown(option)}. Options: {', '.join(OPTIONS)}."
            )
        if option in given:
            raise PromptTagError(f"Hypernetwork {shown(name)}: {option}= is given twice.")
        given[option] = value
    blocks = parse_blocks(name, given.pop("block")) if "block" in given else ()
    return Tag(
        name,
        strength,
        blocks,
        **{option: _number(name, f"{option}=", text) for option, text in given.items()},
    )


def parse_blocks(name: str, text: str) -> tuple[BlockWeight, ...]:
    """Read what stands after `block=`, e.g. `mid+up@0.5`. Raises PromptTagError, with the hypernetwork's `name`."""
    parts = []
    for part in text.split("+"):
        block, at, weight = (piece.strip() for piece in part.partition("@"))
        parts.append(BlockWeight(block, _number(name, f"the factor of block {block}", weight) if at else 1.0))
    return tuple(parts)


def _split_name(body: str) -> tuple[str, str | None]:
    """The name, unquoted, and what follows the colon after it (None: no colon)."""
    body = body.strip()
    pattern = _PLAIN_NAME
    if body.startswith('"'):
        pattern = _QUOTED_NAME
    elif _DRIVE_NAME.match(body):
        pattern = _DRIVE_NAME
    match = pattern.fullmatch(body)
    if match is None:
        raise PromptTagError(
            f"The name in {shown(body)} starts with a double quote: end it with one before the next colon, "
            "and double those within it."
        )
    if pattern is _QUOTED_NAME:
        return match[1].replace('""', '"'), match[2]
    return match[1].strip(), match[2]


def _number(name: str, what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PromptTagError(
            f"Hypernetwork {shown(name)}: {what} is {shown(text)}, not a number such as 0.8."
        ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
