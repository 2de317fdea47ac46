"""Read a file of any format: weights, or a composition together with the files that it names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from hnloader.errors import CorruptFileError, HypernetworkError, HypernetworkNotFoundError, UnknownFormatError
from hnloader.formats.ambiguity import Place, check_pickle
from hnloader.formats.composition import Composition
from hnloader.formats.contents import Contents
from hnloader.formats.identify import kind_of_bytes
from hnloader.formats.registry import format_of, suffixes
from hnloader.formats.source import FileLike, Source, open_source
from hnloader.library import Library
from hnloader.texts import shown

__all__ = ["MAX_NESTED_COMPOSITIONS", "Reader", "files_of", "member_library", "read_composition", "read_contents"]

MAX_NESTED_COMPOSITIONS = 8
# Members of a composition and of the compositions in it, each counted at every mention.
MAX_UNFOLDED = 1_000

T = TypeVar("T")


def read_contents(source: Source) -> Contents:
    """Return the hypernetwork in an opened weight file, tensors not read; raises what `load` raises."""
    found = format_of(source)
    if found is not None and found.read is not None:
        return found.read(source)
    _refuse_bare_pickle(source)
    raise UnknownFormatError(f"{source.label} is {kind_of_bytes(source.head, suffixes())}.")


def read_composition(source: Source) -> Composition | None:
    """Return the composition in an opened file; None for a file of another kind."""
    found = format_of(source)
    return None if found is None or found.read_composition is None else found.read_composition(source)


def _refuse_bare_pickle(source: Source) -> None:
    """Refuse a pickle that torch.save did not write: it has no tensors, but may hold code."""
    trace = check_pickle(source, Place(0, source.size))
    if trace.ending == "limit":
        raise CorruptFileError(
            f"{source.label}: found a pickle that exceeds the opcode or size limit. Its contents are unknown; do "
            "not open it with other programs."
        )
    if trace.ending == "damage" and (trace.is_certain or trace.names):
        raise CorruptFileError(f"{source.label}: the pickle is damaged at byte {trace.end:,}. Download the file again.")
    if trace.ending == "stop":
        raise UnknownFormatError(
            f"{source.label}: found a pickle without tensors, not written by torch.save. Use a hypernetwork file."
        )


@dataclass(frozen=True)
class _Read(Generic[T]):
    """The result for a file, the depth of its nested compositions, and the number of its members unfolded."""

    made: T
    depth: int = 0
    unfolded: int = 1


class Reader(Generic[T]):
    """Reads weight files and nested compositions, each file once, however often others mention it.

    Args:
        folders: Where members are searched after the folder of the file that names them.
        of_weights: Makes something of an opened weight file.
        of_members: Makes the same of an opened composition and what was made of its members.
    """

    def __init__(
        self,
        folders: Iterable[str | os.PathLike[str]],
        of_weights: Callable[[Source, FileLike], T],
        of_members: Callable[[Source, FileLike, Composition, dict[str, T]], T],
    ) -> None:
        self._folders = tuple(folders)
        self._of_weights, self._of_members = of_weights, of_members
        self._known: dict[Path, _Read[T]] = {}
        self._libraries: dict[Path | None, Library] = {}

    def read(self, file: FileLike) -> T:
        """Return what is made of a file.

        Raises:
            CorruptFileError: Compositions nest too deeply, name each other in a circle, or unfold into too much.
            HypernetworkError: The file or a member is missing or cannot be read. The message names it.
        """
        return self._read(file, MAX_NESTED_COMPOSITIONS).made

    def _read(self, file: FileLike, nesting: int) -> _Read[T]:
        with open_source(file) as source:
            found = format_of(source)
            if found is None or found.read_composition is None:
                return _Read(self._of_weights(source, file))
            if nesting == 0:
                raise _too_deep(source)
            composition = found.read_composition(source)
            structure = composition.structure
            members = {name: self._member(name, source, nesting - 1) for name in structure.names()}
            depth = 1 + max(member.depth for member in members.values())
            if depth > MAX_NESTED_COMPOSITIONS:
                raise _too_deep(source)
            unfolded = structure.unfolded({name: member.unfolded for name, member in members.items()})
            if unfolded > MAX_UNFOLDED:
                raise CorruptFileError(
                    f"{source.label}: the composition unfolds into {unfolded:,} members, more than {MAX_UNFOLDED:,}. "
                    "Mention fewer members."
                )
            made = self._of_members(source, file, composition, {name: one.made for name, one in members.items()})
            return _Read(made, depth, unfolded)

    def _member(self, name: str, source: Source, nesting: int) -> _Read[T]:
        beside = None if source.path is None else source.path.parent
        if beside not in self._libraries:
            self._libraries[beside] = member_library(source, self._folders)
        try:
            path = self._libraries[beside].find(name)
        except HypernetworkNotFoundError as error:
            raise HypernetworkNotFoundError(f"{source.label} names a missing member. {error}") from error
        if path not in self._known:
            try:
                self._known[path] = self._read(path, nesting)
            except HypernetworkError as error:
                raise type(error)(f"{source.label} cannot use its member {shown(name)}. {error}") from error
        return self._known[path]


def member_library(source: Source, folders: Iterable[str | os.PathLike[str]]) -> Library:
    """Return where the members of a composition are found: beside the file, then in `folders`."""
    beside = [source.path.parent] if source.path is not None else []
    return Library([*beside, *folders])


def _too_deep(source: Source) -> CorruptFileError:
    return CorruptFileError(
        f"{source.label}: compositions nest more than {MAX_NESTED_COMPOSITIONS} deep, or name each other in a circle. "
        "Name the members directly."
    )


def files_of(path: Path, folders: Iterable[str | os.PathLike[str]] = ()) -> list[Path]:
    """Return a file that loads and, for a composition, the files that it and its members name."""
    searched = tuple(folders)
    with open_source(path) as source:
        composition = read_composition(source)
        if composition is None:
            return [path]
        library = member_library(source, searched)
    return [path, *(file for name in composition.structure.names() for file in files_of(library.find(name), searched))]
