"""The file formats that hnloader knows, each described by one module of this package.

A module describes a format by a `FileFormat` named `FORMAT`. Loading, inspecting, saving, converting, the library, the
command line, the page and the extension ask this registry and list no formats themselves. A format that is not part of
hnloader is added with `register`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.errors import UnknownFormatError

if TYPE_CHECKING:
    from hnloader.formats.composition import Composition
    from hnloader.formats.contents import Contents
    from hnloader.formats.outgoing import Outgoing
    from hnloader.formats.source import Source

__all__ = [
    "FileFormat",
    "default_format",
    "format_named",
    "format_of",
    "format_to_write",
    "formats",
    "register",
    "suffixes",
    "writable_formats",
]


def _nothing_changes(contents: Contents) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A file format: what it is called and holds, and the functions that recognize, read and write it.

    A format holds weights and has `read`, or combines other files by name and has `read_composition`.

    Attributes:
        name: Short name, as in `hnloader convert --to` and `FileInfo.format`.
        label: Name that a page shows.
        suffixes: Endings of file names, in lower case with the dot. Files are written with the first one.
        detect: Returns whether an opened file may be of this format. It looks at `Source.head` and the name.
        read: Returns the hypernetwork in an opened file, tensors not read.
        read_composition: Returns the composition in an opened file.
        write: Writes a hypernetwork to exactly this path; raises OSError if the path cannot be written. None for a
            format that is only read.
        rank: Place among the formats in the library, the default output first. Formats of one rank are in the order in
            which they were found.
        keeps_notes: Files hold `Outgoing.notes` and `Outgoing.hashes`, so that a converted file states its source and
            settings. `verify` then reads from it whether the file was normalized. For a format without notes, metadata
            in another order counts as normalized.
        changes: Returns what differs in a file written in this format, one sentence each.

    Example:
        >>> from hnloader.formats.registry import format_named
        >>> format_named("pt").suffixes
        ('.pt',)
    """

    name: str
    label: str
    suffixes: tuple[str, ...]
    detect: Callable[[Source], bool]
    read: Callable[[Source], Contents] | None = None
    read_composition: Callable[[Source], Composition] | None = None
    write: Callable[[Outgoing, Path], None] | None = None
    rank: int = 100
    keeps_notes: bool = False
    changes: Callable[[Contents], tuple[str, ...]] = field(default_factory=lambda: _nothing_changes)

    def __post_init__(self) -> None:
        if (self.read is None) == (self.read_composition is None):
            raise ValueError(f"The format {self.name!r} must have either `read` or `read_composition`.")

    @property
    def suffix(self) -> str:
        """Ending of the files that are written."""
        return self.suffixes[0]


_registered: list[FileFormat] = []


@functools.cache
def _built_in() -> tuple[FileFormat, ...]:
    """Return what the modules beside this one describe, in the order of their names."""
    package = importlib.import_module("hnloader.formats")
    modules = (
        importlib.import_module(f"hnloader.formats.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    )
    return tuple(module.FORMAT for module in modules if hasattr(module, "FORMAT"))


def formats() -> tuple[FileFormat, ...]:
    """Return all formats: those of the package by the names of their modules, then the registered ones."""
    return (*_built_in(), *_registered)


def register(file_format: FileFormat) -> None:
    """Add a format.

    Args:
        file_format: The format. Its `detect` is asked after the package's formats with weights, before compositions.

    Raises:
        ValueError: Another format has the name or a suffix.

    Example:
        >>> from hnloader.formats.registry import FileFormat, register
        >>> register(FileFormat(name="pt", label="mine", suffixes=(".mine",), detect=bool, read=print))
        Traceback (most recent call last):
            ...
        ValueError: Another format has the name 'pt' or a suffix of ('.mine',).
    """
    for known in formats():
        if known.name == file_format.name or set(known.suffixes) & set(file_format.suffixes):
            raise ValueError(f"Another format has the name {file_format.name!r} or a suffix of {file_format.suffixes}.")
    _registered.append(file_format)


def _ranked() -> list[FileFormat]:
    return sorted(formats(), key=lambda one: one.rank)


def suffixes(*, weights_only: bool = False) -> tuple[str, ...]:
    """Return the endings of all formats, or of those that hold weights, in the order that the library prefers."""
    return tuple(suffix for one in _ranked() for suffix in one.suffixes if one.read is not None or not weights_only)


def writable_formats() -> tuple[FileFormat, ...]:
    """Return the formats that files are written in, the default one first."""
    return tuple(one for one in _ranked() if one.write is not None)


def default_format() -> FileFormat:
    """Return the format that is written unless another one is chosen."""
    return writable_formats()[0]


def format_named(name: str) -> FileFormat:
    """Return the format of that name. Raises UnknownFormatError if there is none."""
    found = next((one for one in formats() if one.name == name), None)
    if found is None:
        raise UnknownFormatError(f"Unknown format {name!r}. Use one of {', '.join(one.name for one in _ranked())}.")
    return found


def format_of(source: Source) -> FileFormat | None:
    """Return the format that an opened file seems to have; None for a file of another kind.

    Compositions are asked last, because their text begins with no mark.
    """
    ordered = sorted(formats(), key=lambda one: one.read is None)
    return next((one for one in ordered if one.detect(source)), None)


def format_to_write(path: Path) -> FileFormat:
    """Return the format in which a file of this name is written.

    Raises:
        UnknownFormatError: No format that is written has the ending. The message names those that exist.
    """
    suffix = path.suffix.lower()
    known = {ending: one for one in writable_formats() for ending in one.suffixes}
    if suffix not in known:
        near = difflib.get_close_matches(suffix, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UnknownFormatError(f"{path}: the name ends in {suffix!r}. Use {' or '.join(known)}.{hint}")
    return known[suffix]
