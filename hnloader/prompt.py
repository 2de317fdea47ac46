"""Read and write the tags of hypernetworks in a prompt: `<hypernet:name:strength>` and its options.

The prompt, the option `--hypernet` of the command line, and hosts that split a tag at its colons share one grammar:

- `<hypernet:style>`: strength 1
- `<hypernet:style:0.8>`: strength 0.8
- `<hypernet:style:0.8:start=0.2,end=0.8>`: only between 20 % and 80 % of the sampling
- `<hypernet:style:0.8:block=up>`: only in the up blocks
- `<hypernet:style:0.8:block=mid+up@0.5:k=1:v=0.5>`: mid at full strength, up at half; the v side at half

Commas and colons separate options. A part after the strength without `=` is ignored, as in the webuis:
`<hypernet:ink:0.8:0.5>` has the strength 0.8. A name ends at the first colon and may hold anything else (spaces,
commas, dots, `/` for subfolders). Put a name with a colon in double quotes, and double the quotes in it:
`<hypernet:"12:30":0.8>`. A Windows drive (`C:/styles/ink.pt`) needs no quotes. No tag can hold `>`, which ends it in
every program that reads tags.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hnloader.errors import PromptTagError
from hnloader.texts import shown

__all__ = ["BlockWeight", "ParsedPrompt", "Tag", "parse_prompt", "parse_tag"]

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
    """A block in a tag's `block=` option, and the factor on the tag's strength there.

    Args:
        block: Pattern for the block, as in `hnloader.attach`, such as `up` or `up.1.cross`.
        weight: Factor on the strength. Default: 1.

    Example:
        >>> from hnloader.prompt import BlockWeight
        >>> str(BlockWeight("up", 0.5))
        'up@0.5'
    """

    block: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.block if self.weight == 1.0 else f"{self.block}@{format_number(self.weight)}"


@dataclass(frozen=True)
class Tag:
    """A tag: a hypernetwork and how to apply it. `str` writes it as text.

    Args:
        name: Name of the hypernetwork.
        strength: Any finite number. Default: 1.
        blocks: Blocks that it changes; the others get 0. Default: all blocks.
        start: Fraction of the sampling at which it begins to act. Default: 0.
        end: Fraction of the sampling at which it stops, more than `start`. Default: 1.
        k: Factor on the strength for the keys. Default: 1.
        v: Factor on the strength for the values. Default: 1.

    Raises:
        PromptTagError: The name is empty, a number is not finite, the window is empty, or a block is named twice.

    Example:
        >>> from hnloader.prompt import Tag
        >>> str(Tag("ink", 0.8, start=0.2))
        '<hypernet:ink:0.8:start=0.2>'
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
            raise PromptTagError("Hypernet tag: the name is empty. Write <hypernet:name:strength>.")
        numbers = {"strength": self.strength, "start": self.start, "end": self.end, "k": self.k, "v": self.v}
        numbers |= {f"the factor of block {part.block}": part.weight for part in self.blocks}
        for what, value in numbers.items():
            if not is_finite(value):
                raise PromptTagError(f"{self._label}: {what} is {shown(value)}. Use a finite number.")
        if not 0.0 <= self.start < self.end <= 1.0:
            window = f"start={format_number(self.start)} and end={format_number(self.end)}"
            raise PromptTagError(
                f"{self._label}: found {window}. Use fractions of the sampling with 0 <= start < end <= 1."
            )
        for part in self.blocks:
            if not _BLOCK_NAME.fullmatch(part.block):
                raise PromptTagError(
                    f"{self._label}: the block {shown(part.block)} is malformed. Write block=up or block=mid+up@0.5."
                )
        names = [part.block for part in self.blocks]
        if len(set(names)) < len(names):
            raise PromptTagError(f"{self._label}: block={'+'.join(names)} names a block twice. Name each block once.")

    @property
    def _label(self) -> str:
        return _label(self.name)

    def options(self) -> str:
        """Return the options that differ from their defaults.

        Returns:
            Text such as `block=up,start=0.2`.
        """
        given = ["block=" + "+".join(map(str, self.blocks))] if self.blocks else []
        for name, default in (("start", 0.0), ("end", 1.0), ("k", 1.0), ("v", 1.0)):
            value = getattr(self, name)
            given += [f"{name}={format_number(value)}"] if value != default else []
        return ",".join(given)

    def __str__(self) -> str:
        """Return the tag as text, or raise PromptTagError for a name that holds `>`."""
        if ">" in self.name:
            raise PromptTagError(f"{self._label}: the name holds '>', which ends a tag. Rename the file.")
        name = self.name
        if _NAME_NEEDS_QUOTES.search(name):
            name = '"' + name.replace('"', '""') + '"'
        options = self.options()
        return f"<{_KIND}:{name}:{format_number(self.strength)}{':' if options else ''}{options}>"


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its hypernet tags, and the tags in order.

    Args:
        prompt: The rest of the prompt.
        tags: The tags.

    Example:
        >>> from hnloader.prompt import parse_prompt
        >>> parse_prompt("a castle <hypernet:ink:0.8>").prompt
        'a castle '
    """

    prompt: str
    tags: tuple[Tag, ...]


def is_finite(value: float) -> bool:
    """Return True for a finite number in the range of floats, which an integer can exceed."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def format_number(value: float) -> str:
    """Return the shortest text of a finite number: 0.5, 1, -2, 1e-07. It never holds a `+`."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value)).replace("e+", "e")


def parse_prompt(prompt: str) -> ParsedPrompt:
    """Separate the hypernet tags from a prompt, as the webuis do. Other tags (`<lora:...>`) stay in the prompt.

    Args:
        prompt: The prompt. It may name the same hypernetwork several times.

    Returns:
        The rest of the prompt, unchanged, and the tags.

    Raises:
        PromptTagError: A hypernet tag is malformed.

    Example:
        >>> from hnloader.prompt import parse_prompt
        >>> parsed = parse_prompt("a castle <hypernet:ink:0.8:block=up>, at night <lora:x:1>")
        >>> parsed.prompt
        'a castle , at night <lora:x:1>'
        >>> parsed.tags[0].name, parsed.tags[0].strength
        ('ink', 0.8)
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
    """Return the text between `<hypernet:` and `>` of each hypernet tag in a prompt, well-formed or not."""
    return [match[2] for match in _TAG.finditer(_may_hold_tags(prompt)[0]) if match[1] == _KIND]


def other_tags(prompt: str) -> list[str]:
    """Return the other tags in a prompt, such as `<lora:x:1>`."""
    return [match[0] for match in _TAG.finditer(_may_hold_tags(prompt)[0]) if match[1] != _KIND]


def _may_hold_tags(prompt: str) -> tuple[str, str]:
    """Split a prompt after the last `>`: searching each `<a:` of the rest to its end takes quadratic time."""
    end = prompt.rfind(">") + 1
    return prompt[:end], prompt[end:]


def parse_items(items: Sequence[str]) -> Tag:
    """Read a tag that a host has split at its colons (the webuis' `params.items`)."""
    return parse_tag(":".join(items))


def parse_tag(body: str) -> Tag:
    """Read the text between `<hypernet:` and `>`: a name, a strength, options.

    Args:
        body: The text, or a value of the command line's option `--hypernet`.

    Returns:
        The tag.

    Raises:
        PromptTagError: The text is malformed.

    Example:
        >>> from hnloader.prompt import parse_tag
        >>> parse_tag("ink:0.8:start=0.2,k=0.5")
        Tag(name='ink', strength=0.8, blocks=(), start=0.2, end=1.0, k=0.5, v=1.0)
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
            hint = "Write decimals with a point" if _is_number(item) else "Write options as option=value"
            raise PromptTagError(f"{_label(name)}: found {shown(item)}. {hint}.")
        if option not in OPTIONS:
            raise PromptTagError(
                f"{_label(name)}: the option {shown(option)} is unknown. Use one of: {', '.join(OPTIONS)}."
            )
        if option in given:
            raise PromptTagError(f"{_label(name)}: found {option}= twice. Give it once.")
        given[option] = value
    blocks = parse_blocks(name, given.pop("block")) if "block" in given else ()
    return Tag(
        name,
        strength,
        blocks,
        **{option: _number(name, f"{option}=", text) for option, text in given.items()},
    )


def parse_blocks(name: str, text: str) -> tuple[BlockWeight, ...]:
    """Read the value of `block=`, such as `mid+up@0.5`, or raise PromptTagError with the hypernetwork's `name`."""
    parts = []
    for part in text.split("+"):
        block, at, weight = (piece.strip() for piece in part.partition("@"))
        parts.append(BlockWeight(block, _number(name, f"the factor of block {block}", weight) if at else 1.0))
    return tuple(parts)


def _split_name(body: str) -> tuple[str, str | None]:
    """Return the name, unquoted, and the text after its colon, None without a colon."""
    body = body.strip()
    pattern = _PLAIN_NAME
    if body.startswith('"'):
        pattern = _QUOTED_NAME
    elif _DRIVE_NAME.match(body):
        pattern = _DRIVE_NAME
    match = pattern.fullmatch(body)
    if match is None:
        raise PromptTagError(
            f"Hypernet tag {shown(body)}: the name begins with a double quote and does not end with one. "
            "Close it before the next colon, and double the quotes in it."
        )
    if pattern is _QUOTED_NAME:
        return match[1].replace('""', '"'), match[2]
    return match[1].strip(), match[2]


def _label(name: str) -> str:
    return f"Hypernetwork {shown(name)}"


def _number(name: str, what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PromptTagError(f"{_label(name)}: {what} is {shown(text)}. Use a number such as 0.8.") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
