"""The `.hns` text format of the MonkeyPatch extension: hypernetworks composed by name.

A list applies its members one after the other. A dict {name: weight} applies them side by side to the same
input and takes the weighted mean, a set the plain mean. `(name, strength)` or a dict of one gives a member a
strength from 0 to 1. A string that begins with a bracket is a structure itself. The text looks like Python
but is only ever read as text, by the small grammar below; names need no quotes unless they hold one of
`[]{}():,'"`.
"""

from __future__ import annotations

import ast
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from hnloader.affine import AffineMap
from hnloader.errors import (
    CorruptFileError,
    HypernetworkError,
    HypernetworkNotFoundError,
    UnknownFormatError,
    UnsupportedArchitectureError,
)
from hnloader.formats.source import FileLike, Source, open_source
from hnloader.library import Library
from hnloader.network import Hypernetwork, Side, SideName
from hnloader.texts import shown

SUFFIX = ".hns"
MAX_SIZE = 64 << 10
MAX_DEPTH = 16
MAX_MEMBERS = 100
MAX_NESTED_COMPOSITIONS = 8
# Members of a composition and of those that it names, each as often as it is mentioned and computed.
MAX_UNFOLDED = 1_000
MAX_WIDTHS = 64  # of all members; the known models have 8

T = TypeVar("T")


# -- what a composition is


@dataclass(frozen=True)
class Member:
    """One hypernetwork by name, or a structure, at a strength from 0 to 1."""

    of: str | Structure
    strength: float = 1.0


@dataclass(frozen=True)
class Structure:
    """Members one after the other (weights None), or side by side with weights that add up to 1."""

    members: tuple[Member, ...]
    weights: tuple[float, ...] | None = None

    def names(self) -> list[str]:
        """The hypernetworks named in it, each once, in order."""
        found: list[str] = []
        for member in self.members:
            found += [member.of] if isinstance(member.of, str) else member.of.names()
        return list(dict.fromkeys(found))

    def unfolded(self, members: Mapping[str, int]) -> int:
        """Return how many members there are, each as often as it is mentioned; `members` says of how many each is."""
        return sum(
            members[member.of] if isinstance(member.of, str) else member.of.unfolded(members) for member in self.members
        )


class Composed(Side):
    """One side of a composition for one width; members that lack the width leave the context unchanged.

    At strength 1 it is what the composition says; other strengths move from the context towards that (the
    original ignores the strength of the tag for these files).
    """

    def __init__(
        self, width: int, sides: list[Side], strengths: list[float], weights: tuple[float, ...] | None
    ) -> None:
        super().__init__()
        self.width = width
        self.members = nn.ModuleList(sides)
        self.strengths = strengths
        self.weights = weights

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """The changed context; at strength 1 exactly what the members give, not rounded by a detour."""
        return self._composed(x) if strength == 1 else super().forward(x, strength)

    def residual(self, x: Tensor) -> Tensor:
        """What the composition adds to `x` [..., width] at strength 1."""
        return self._composed(x) - x

    def _composed(self, x: Tensor) -> Tensor:
        if self.weights is None:
            result = x
            for side, strength in zip(self.members, self.strengths, strict=True):
                result = side(result, strength) if strength else result
            return result
        parts = zip(self.members, self.strengths, self.weights, strict=True)
        total = sum((side(x, strength) if strength else x) * weight for side, strength, weight in parts)
        assert isinstance(total, Tensor)
        return total

    def affine_map(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> AffineMap | None:
        """The members' maps composed; None when one of them has none. See `Side.affine_map`."""
        maps = [side.affine_map(dtype, device) for side in self._sides()]
        if any(each is None for each in maps):
            return None
        identity = AffineMap.identity(self.width, dtype, device)
        applied = [identity + each.scaled(s) for each, s in zip(maps, self.strengths, strict=True) if each is not None]
        if self.weights is None:
            result = identity
            for each in applied:
                result = result.then(each)
            return result - identity
        result = AffineMap.zero(self.width, dtype, device)
        for each, weight in zip(applied, self.weights, strict=True):
            result = result + each.scaled(weight)
        return result - identity

    def _sides(self) -> list[Side]:
        return [side for side in self.members if isinstance(side, Side)]


class Unchanged(Side):
    """The side of a member that does not hold the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def residual(self, x: Tensor) -> Tensor:
        """Zeros, of the shape of `x`."""
        return x.new_zeros(x.shape)

    def affine_map(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> AffineMap | None:
        """The map whose result is zero."""
        return AffineMap.zero(self.width, dtype, device)


# -- the format


def detect(source: Source) -> bool:
    """True for a file named .hns, or a nameless text that begins like one."""
    if source.path is not None and source.path.suffix:
        return source.path.suffix.lower() == SUFFIX
    return source.head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{", b"(") and source.size <= MAX_SIZE


def read_structure(source: Source) -> tuple[Structure, str]:
    """The structure in the file, and its text.

    Raises:
        UnknownFormatError: it is not text, or too large for one.
        CorruptFileError: the text does not follow the grammar; the message says where.
    """
    if source.size > MAX_SIZE:
        raise UnknownFormatError(f"{source.label} has {source.size:,} bytes; a composition has at most {MAX_SIZE:,}")
    try:
        text = source.read(0, source.size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnknownFormatError(f"{source.label} is not text; a .hns file names hypernetworks as text") from error
    try:
        return parse(text), text
    except _SyntaxError as error:
        raise CorruptFileError(f"{source.label}: {error}") from error


@dataclass(frozen=True)
class _Read(Generic[T]):
    """What was made of a file, how many compositions lie within each other in it, and its members unfolded."""

    made: T
    depth: int = 0
    unfolded: int = 1


class Reader(Generic[T]):
    """Reads weight files and compositions of compositions, each file once, however often others mention it.

    Members are found beside the file that names them, then in `folders`.

    Args:
        folders: Where to look for members that do not lie beside the file.
        of_weights: Makes something of an opened weight file.
        of_members: Makes the same of an opened composition: its structure, its text, and what was made of its members.
    """

    def __init__(
        self,
        folders: Iterable[str | os.PathLike[str]],
        of_weights: Callable[[Source, FileLike], T],
        of_members: Callable[[Source, FileLike, Structure, str, dict[str, T]], T],
    ) -> None:
        self._folders = tuple(folders)
        self._of_weights, self._of_members = of_weights, of_members
        self._known: dict[Path, _Read[T]] = {}
        self._libraries: dict[Path | None, Library] = {}

    def read(self, file: FileLike) -> T:
        """Return what is made of a file.

        Raises:
            CorruptFileError: Compositions nest too deeply, name each other in a circle, or unfold into too much.
            HypernetworkError: The file or a member is missing or cannot be read; the message names it.
        """
        return self._read(file, MAX_NESTED_COMPOSITIONS).made

    def _read(self, file: FileLike, nesting: int) -> _Read[T]:
        with open_source(file) as source:
            if not detect(source):
                return _Read(self._of_weights(source, file))
            if nesting == 0:
                raise _too_deep(source)
            structure, text = read_structure(source)
            members = {name: self._member(name, source, nesting - 1) for name in structure.names()}
            depth = 1 + max(member.depth for member in members.values())
            if depth > MAX_NESTED_COMPOSITIONS:
                raise _too_deep(source)
            unfolded = structure.unfolded({name: member.unfolded for name, member in members.items()})
            if unfolded > MAX_UNFOLDED:
                raise CorruptFileError(
                    f"{source.label}: its compositions unfold into {unfolded:,} members; at most {MAX_UNFOLDED:,} are "
                    "computed. Mention fewer of them."
                )
            made = self._of_members(source, file, structure, text, {name: one.made for name, one in members.items()})
            return _Read(made, depth, unfolded)

    def _member(self, name: str, source: Source, nesting: int) -> _Read[T]:
        try:
            path = self._library(source).find(name)
        except HypernetworkNotFoundError as error:
            raise HypernetworkNotFoundError(f"{source.label} names a member that is missing. {error}") from error
        if path not in self._known:
            try:
                self._known[path] = self._read(path, nesting)
            except HypernetworkError as error:
                raise type(error)(f"{source.label} cannot use its member {shown(name)}: {error}") from error
        return self._known[path]

    def _library(self, source: Source) -> Library:
        """Each folder is listed once."""
        beside = None if source.path is None else source.path.parent
        if beside not in self._libraries:
            self._libraries[beside] = member_library(source, self._folders)
        return self._libraries[beside]


def member_library(source: Source, folders: Iterable[str | os.PathLike[str]]) -> Library:
    """Return where the members of a composition are found: beside the file, then in `folders`."""
    beside = [source.path.parent] if source.path is not None else []
    return Library([*beside, *folders])


def _too_deep(source: Source) -> CorruptFileError:
    return CorruptFileError(f"{source.label}: compositions are nested too deeply, or name each other in a circle")


def composed(source: Source, structure: Structure, text: str, members: dict[str, Hypernetwork]) -> Hypernetwork:
    """Build the composition of its members."""
    widths = all_widths(source, [member.widths for member in members.values()])
    sides = {
        width: (_compose(structure, members, width, "k"), _compose(structure, members, width, "v")) for width in widths
    }
    return Hypernetwork(
        sides,
        name=source.stem,
        metadata={"structure": text, "members": {name: member.metadata for name, member in members.items()}},
        variant="composition",
    )


def all_widths(source: Source, members: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """Return the widths of the members, each once. Raises CorruptFileError for more than any model has."""
    widths = tuple(dict.fromkeys(width for member in members for width in member))
    if len(widths) > MAX_WIDTHS:
        raise CorruptFileError(
            f"{source.label}: its members have {len(widths):,} widths; at most {MAX_WIDTHS} are computed. "
            "Leave out the member that is for no model."
        )
    return widths


def files_of(path: Path, folders: Iterable[str | os.PathLike[str]] = ()) -> list[Path]:
    """Return a file that loads and, where it is a composition, the files that it and its members name."""
    searched = tuple(folders)
    with open_source(path) as source:
        if not detect(source):
            return [path]
        names = read_structure(source)[0].names()
        library = member_library(source, searched)
    return [path, *(file for name in names for file in files_of(library.find(name), searched))]


def _compose(structure: Structure, members: dict[str, Hypernetwork], width: int, side: SideName) -> Side:
    def built(of: str | Structure) -> Side:
        if isinstance(of, Structure):
            return _compose(of, members, width, side)
        member = members[of]
        return member.side(width, side) if width in member.widths else Unchanged(width)

    sides = [built(member.of) for member in structure.members]
    return Composed(width, sides, [member.strength for member in structure.members], structure.weights)


def chain_text(members: Sequence[tuple[str, float]]) -> str:
    """Return the text of a composition that applies members one after the other, each by name and strength.

    Raises:
        UnsupportedArchitectureError: No text means exactly these members and strengths.
    """
    text = "[" + ", ".join(f"({name!r}, {float(strength)!r})" for name, strength in members) + "]\n"
    try:
        found = parse(text)
    except _SyntaxError as error:
        raise UnsupportedArchitectureError(f"the composition would be refused: {error}") from error
    meant = tuple(Member(name, float(strength)) for name, strength in members)
    if found != Structure(meant) or len(text.encode("utf-8")) > MAX_SIZE:
        names = ", ".join(repr(name) for name, _ in members)
        raise UnsupportedArchitectureError(
            f"the composition of {names:.200} would be read otherwise or be too long. Rename the files."
        )
    return text


def is_name(text: str) -> bool:
    """Return whether `text`, quoted in a composition, is the name of a member and not another one or a structure."""
    try:
        return parse(f"[({text!r}, 0.5)]") == Structure((Member(text, 0.5),))
    except _SyntaxError:
        return False


# -- the grammar: value = list | tuple | dict | set | "quoted" | bare name


class _SyntaxError(Exception):
    """Says what was expected at which line and column."""


_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[\[\](){}:,])|(?P<quoted>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")|(?P<bare>[^\[\](){}:,'"\s](?:[^\[\](){}:,'"\n]*[^\[\](){}:,'"\s])?))"""
)


def parse(text: str) -> Structure:
    """The structure that `text` describes; raises `_SyntaxError`."""
    parser = _Parser(text)
    member = parser.member(parser.value(0), 0)
    parser.end()
    whole = member.of if isinstance(member.of, Structure) and member.strength == 1 else Structure((member,))
    if not 0 < len(whole.names()) <= MAX_MEMBERS:
        raise _SyntaxError(f"it names {len(whole.names())} hypernetworks; 1 to {MAX_MEMBERS} were expected")
    return whole


class _Parser:
    """Recursive descent over the tokens of one text. Values are str, list, tuple and `_Braces`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.members = 0

    def fail(self, expected: str) -> _SyntaxError:
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - (self.text.rfind("\n", 0, self.at) + 1) + 1
        found = self.text[self.at : self.at + 20].strip().splitlines()
        return _SyntaxError(
            f"line {line}, column {column}: {expected}, found {shown(found[0]) if found else 'its end'}"
        )

    def token(self) -> tuple[str, str] | None:
        """The next token as (kind, text) without taking it; None at the end."""
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            if self.text[self.at :].strip():
                raise self.fail("a name or a bracket was expected")
            return None
        return str(match.lastgroup), match.group(str(match.lastgroup))

    def take(self) -> tuple[str, str]:
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            raise self.fail("a name or a bracket was expected")
        self.at = match.end()
        return str(match.lastgroup), match.group(str(match.lastgroup))

    def end(self) -> None:
        if self.token() is not None:
            raise self.fail("nothing more was expected")

    def value(self, depth: int) -> object:
        if depth > MAX_DEPTH:
            raise self.fail(f"at most {MAX_DEPTH} nested brackets were expected")
        kind, text = self.take()
        if kind == "quoted":
            return self.unquoted(text)
        if kind == "bare":
            return text
        if text == "[":
            return self.items("]", depth)
        if text == "(":
            return tuple(self.items(")", depth))
        if text == "{":
            return self.braces(depth)
        self.at -= len(text)
        raise self.fail("a name or an opening bracket was expected")

    def unquoted(self, text: str) -> str:
        """The text between quotes, with Python's escapes."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns of escapes that it does not know and keeps them
                return str(ast.literal_eval(text))
        except (ValueError, SyntaxError) as error:
            raise self.fail(f"a text with proper escapes was expected, not {shown(text, 40)}") from error

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
                raise self.fail(f"at most {MAX_MEMBERS} members were expected")
            if not self.took(","):
                self.need("}")
                break
        if len({weight is None for _, weight in pairs}) > 1:
            raise self.fail("'name: weight' everywhere in the braces or nowhere was expected")
        return _Braces(pairs)

    def took(self, mark: str) -> bool:
        if self.token() == ("mark", mark):
            self.take()
            return True
        return False

    def need(self, mark: str) -> None:
        if not self.took(mark):
            raise self.fail(f"{mark!r} was expected")

    # -- from values to members

    def member(self, value: object, depth: int) -> Member:
        """What `value` means as a member of a structure."""
        if depth > MAX_DEPTH:
            raise self.fail(f"at most {MAX_DEPTH} nested structures were expected")
        if isinstance(value, str):
            return self.named(value, depth)
        if isinstance(value, _Braces):
            return self.parallel(value.pairs, depth)
        if isinstance(value, tuple) and len(value) != 1:
            if len(value) != 2:
                raise self.fail("(name, strength) was expected in round brackets")
            return self.with_strength(value[0], value[1], depth)
        if isinstance(value, (list, tuple)) and value:
            return self.sequence([self.member(item, depth + 1) for item in value])
        raise self.fail("at least one name was expected in the brackets")

    def named(self, name: str, depth: int) -> Member:
        stripped = name.strip()
        if not stripped:
            raise self.fail("a name was expected, not an empty one")
        if stripped[0] not in "[({":
            self.members += 1
            if self.members > MAX_MEMBERS:
                raise self.fail(f"at most {MAX_MEMBERS} members were expected")
            return Member(stripped)
        inner = _Parser(stripped)
        inner.members = self.members
        member = inner.member(inner.value(depth + 1), depth + 1)
        inner.end()
        self.members = inner.members
        return member

    def sequence(self, members: list[Member]) -> Member:
        return members[0] if len(members) == 1 else Member(Structure(tuple(members)))

    def parallel(self, pairs: list[tuple[object, object]], depth: int) -> Member:
        if len(pairs) == 1:
            name, strength = pairs[0]
            return self.member(name, depth + 1) if strength is None else self.with_strength(name, strength, depth)
        members = [self.member(name, depth + 1) for name, _ in pairs]
        weights = [1.0 if weight is None else self.number(weight) for _, weight in pairs]
        total = sum(weights)
        if total == 0:
            raise self.fail("members whose weights do not add up to 0 were expected in the braces")
        if not math.isfinite(total):
            raise self.fail("members whose weights add up to a number were expected in the braces")
        return Member(Structure(tuple(members), tuple(weight / total for weight in weights)))

    def with_strength(self, name: object, strength: object, depth: int) -> Member:
        number = self.number(strength)
        if not 0 <= number <= 1:
            raise self.fail(f"a strength from 0 to 1 was expected, not {number:g}")
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
            raise self.fail(f"a number was expected, not {shown(value, 40)}")
        return number


@dataclass
class _Braces:
    """The entries of braces, each once, in the order written; weights are None in a set."""

    pairs: list[tuple[object, object]]
