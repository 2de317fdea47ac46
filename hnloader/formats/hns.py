"""The `.hns` text format of the MonkeyPatch extension: hypernetworks combined by name.

A list applies its members one after the other. A dict {name: weight} applies them side by side to the same input and
takes the weighted mean, a set the plain mean. `(name, strength)` or a dict of one entry gives a member a strength from
0 to 1. A string that begins with a bracket is a structure itself. The text looks like Python but is only read as text.
Names need quotes only if they hold one of `[]{}():,'"`.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from hnloader.errors import CorruptFileError, UnknownFormatError, UnsupportedArchitectureError
from hnloader.formats.composition import Composition, Member, Structure
from hnloader.formats.registry import FileFormat
from hnloader.formats.source import Source
from hnloader.texts import shown

__all__ = ["FORMAT", "chain_text", "is_member_name", "parse"]

SUFFIX = ".hns"
MAX_SIZE = 64 << 10
MAX_DEPTH = 16
MAX_MEMBERS = 100


def _detect(source: Source) -> bool:
    """Return whether a file is named .hns, or is a nameless text that begins like one."""
    if source.path is not None and source.path.suffix:
        return source.path.suffix.lower() == SUFFIX
    return source.head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{", b"(") and source.size <= MAX_SIZE


def _read(source: Source) -> Composition:
    """Read the composition in a file.

    Raises:
        UnknownFormatError: The file is not text, or too large.
        CorruptFileError: The text breaks the grammar. The message says where.
    """
    if source.size > MAX_SIZE:
        raise UnknownFormatError(
            f"{source.label} has {source.size:,} bytes, and a composition at most {MAX_SIZE:,}. Use a .hns file."
        )
    try:
        text = source.read(0, source.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnknownFormatError(f"{source.label} is not text. A .hns file names hypernetworks as text.") from error
    try:
        return Composition(parse(text), text, "MonkeyPatch extension")
    except _SyntaxError as error:
        raise CorruptFileError(f"{source.label}: {error}. Correct the text there.") from error


FORMAT = FileFormat(
    name="hns",
    label="hns (composition)",
    suffixes=(SUFFIX,),
    detect=_detect,
    read_composition=_read,
    rank=30,
)


def chain_text(members: Sequence[tuple[str, float]]) -> str:
    """Return the text of a composition that applies members one after the other, each by name and strength.

    Raises:
        UnsupportedArchitectureError: No text means exactly these members and strengths.
    """
    text = "[" + ", ".join(f"({name!r}, {float(strength)!r})" for name, strength in members) + "]\n"
    try:
        found = parse(text)
    except _SyntaxError as error:
        raise UnsupportedArchitectureError(f"The composition would be refused: {error}. Rename the files.") from error
    meant = tuple(Member(name, float(strength)) for name, strength in members)
    if found != Structure(meant) or len(text.encode("utf-8")) > MAX_SIZE:
        names = ", ".join(repr(name) for name, _ in members)
        raise UnsupportedArchitectureError(
            f"The composition of {names:.200} would be too long or be read differently. Rename the files."
        )
    return text


def is_member_name(text: str) -> bool:
    """Return whether `text`, quoted in a composition, names one member and is not read as a structure."""
    try:
        return parse(f"[({text!r}, 0.5)]") == Structure((Member(text, 0.5),))
    except _SyntaxError:
        return False


# -- the grammar: value = list | tuple | dict | set | "quoted" | bare name


class _SyntaxError(Exception):
    """Says what the grammar expects at which line and column."""


_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[\[\](){}:,])|(?P<quoted>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")|(?P<bare>[^\[\](){}:,'"\s](?:[^\[\](){}:,'"\n]*[^\[\](){}:,'"\s])?))"""
)


def parse(text: str) -> Structure:
    """Return the structure that `text` describes. Raises `_SyntaxError`."""
    parser = _Parser(text)
    member = parser.member(parser.value(0), 0)
    parser.end()
    whole = member.of if isinstance(member.of, Structure) and member.strength == 1 else Structure((member,))
    if not 0 < len(whole.names()) <= MAX_MEMBERS:
        raise _SyntaxError(f"Expected 1 to {MAX_MEMBERS} names of hypernetworks, found {len(whole.names())}")
    return whole


@dataclass
class _Braces:
    """The entries of braces, each once, in the order written; weights are None in a set."""

    pairs: list[tuple[object, object]]


class _Parser:
    """Recursive descent over the tokens of one text. Values are str, list, tuple and `_Braces`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.members = 0

    def fail(self, expected: str) -> NoReturn:
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - (self.text.rfind("\n", 0, self.at) + 1) + 1
        found = self.text[self.at : self.at + 20].strip().splitlines()
        what = shown(found[0]) if found else "its end"
        raise _SyntaxError(f"Line {line}, column {column}: expected {expected}, found {what}")

    def take(self) -> tuple[str, str]:
        """Return the next token as (kind, text)."""
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            self.fail("a name or a bracket")
        self.at = match.end()
        return str(match.lastgroup), match.group(str(match.lastgroup))

    def end(self) -> None:
        if self.text[self.at :].strip():
            self.fail("the end of the text")

    def value(self, depth: int) -> object:
        if depth > MAX_DEPTH:
            self.fail(f"at most {MAX_DEPTH} nested brackets")
        kind, text = self.take()
        if kind == "quoted":
            return self.unquoted(text)
        if kind == "bare":
            return text
        if text == "[":
            return self.items("]", depth)
        if text == "(":
            return tuple(self.items(")", depth))
        if text != "{":
            self.at -= len(text)
            self.fail("a name or an opening bracket")
        return self.braces(depth)

    def unquoted(self, text: str) -> str:
        """Return the text between quotes, with Python's escapes."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python keeps unknown escapes, with a warning
                return str(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            self.fail(f"proper escapes in {shown(text, 40)}")

    def items(self, closing: str, depth: int) -> list[object]:
        items: list[object] = []
        while not self.took(closing):
            items.append(self.value(depth + 1))
            if not self.took(","):
                self.need(closing)
                break
        return items

    def braces(self, depth: int) -> _Braces:
        pairs: list[tuple[object, object]] = []
        while not self.took("}"):
            key = self.value(depth + 1)
            weight = self.value(depth + 1) if self.took(":") else None
            pairs = [pair for pair in pairs if pair[0] != key] + [(key, weight)]
            if len(pairs) > MAX_MEMBERS:
                self.fail(f"at most {MAX_MEMBERS} members")
            if not self.took(","):
                self.need("}")
                break
        if len({weight is None for _, weight in pairs}) > 1:
            self.fail("'name: weight' for all entries of the braces or for none")
        return _Braces(pairs)

    def took(self, mark: str) -> bool:
        match = _TOKEN.match(self.text, self.at)
        if match is None and self.text[self.at :].strip():
            self.fail("a name or a bracket")
        if match is None or match["mark"] != mark:
            return False
        self.at = match.end()
        return True

    def need(self, mark: str) -> None:
        if not self.took(mark):
            self.fail(repr(mark))

    # -- from values to members

    def member(self, value: object, depth: int) -> Member:
        """Return the member that a value describes."""
        if depth > MAX_DEPTH:
            self.fail(f"at most {MAX_DEPTH} nested structures")
        if isinstance(value, str):
            return self.named(value, depth)
        if isinstance(value, _Braces):
            return self.parallel(value.pairs, depth)
        if isinstance(value, tuple) and len(value) != 1:
            if len(value) != 2:
                self.fail("(name, strength) in parentheses")
            return self.with_strength(value[0], value[1], depth)
        if not isinstance(value, (list, tuple)) or not value:
            self.fail("at least one name in the brackets")
        members = [self.member(item, depth + 1) for item in value]
        return members[0] if len(members) == 1 else Member(Structure(tuple(members)))

    def named(self, name: str, depth: int) -> Member:
        stripped = name.strip()
        if not stripped:
            self.fail("a name that is not empty")
        if stripped[0] not in "[({":
            self.members += 1
            if self.members > MAX_MEMBERS:
                self.fail(f"at most {MAX_MEMBERS} members")
            return Member(stripped)
        inner = _Parser(stripped)
        inner.members = self.members
        member = inner.member(inner.value(depth + 1), depth + 1)
        inner.end()
        self.members = inner.members
        return member

    def parallel(self, pairs: list[tuple[object, object]], depth: int) -> Member:
        if len(pairs) == 1:
            name, strength = pairs[0]
            return self.member(name, depth + 1) if strength is None else self.with_strength(name, strength, depth)
        members = [self.member(name, depth + 1) for name, _ in pairs]
        weights = [1.0 if weight is None else self.number(weight) for _, weight in pairs]
        total = sum(weights)
        if total == 0:
            self.fail("weights that do not add up to 0")
        if not math.isfinite(total):
            self.fail("weights with a finite sum")
        return Member(Structure(tuple(members), tuple(weight / total for weight in weights)))

    def with_strength(self, name: object, strength: object, depth: int) -> Member:
        number = self.number(strength)
        if not 0 <= number <= 1:
            self.fail(f"a strength from 0 to 1 instead of {number:g}")
        member = self.member(name, depth + 1)
        if number == 1:
            return member
        return Member(member.of, number) if member.strength == 1 else Member(Structure((member,)), number)

    def number(self, value: object) -> float:
        try:
            number = float(value) if isinstance(value, str) else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"a number instead of {shown(value, 40)}")
        return number
