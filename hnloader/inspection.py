"""Inspect hypernetwork files: what they hold, from their headers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hnloader.errors import HypernetworkError
from hnloader.families import families_of, made_for
from hnloader.files import legacy_hash_of
from hnloader.formats.architecture import ARCHITECTURE_KEYS
from hnloader.formats.composition import Composition, all_scopes
from hnloader.formats.contents import is_tensor_info
from hnloader.formats.reading import Reader, read_contents
from hnloader.formats.registry import format_of
from hnloader.formats.source import FileLike, Source, open_source
from hnloader.formats.trees import mapped
from hnloader.network import Architecture
from hnloader.scopes import as_scope
from hnloader.texts import as_text, plain, shown

__all__ = ["FileInfo", "inspect"]

_CHUNK = 1 << 20
_MOST_TEXT = 1 << 20  # characters of metadata in `FileInfo.to_dict`
_LONGEST_FACT = 1_000  # characters of a name there
# Keys of the metadata that are attributes of a `FileInfo`.
_ATTRIBUTES = frozenset({"name", "step", "sd_checkpoint", "sd_checkpoint_name", *ARCHITECTURE_KEYS})


@dataclass(frozen=True)
class FileInfo:
    """The facts about one file.

    Attributes:
        path: Path; None for a file object without a name.
        name: Name in the file, otherwise the file's stem.
        size: Size in bytes.
        format: Name of the format: "pt", "safetensors" or "hns".
        container: Form of the bytes: "zip", "legacy", "safetensors" or "text".
        program: Program that wrote the file, as far as the file shows.
        variant: Kind of file of that program.
        widths: Context widths that it changes.
        scopes: Scope of each pair of sides, as text. Of most files, these are the widths.
        families: Model families that it is made for; empty if no known family has its widths.
        architecture: Architecture of the sides; None for a composition.
        step: Training steps; None if the file does not state them.
        checkpoint: Short hash of the checkpoint that it was trained on; None if unknown.
        checkpoint_name: Name of that checkpoint; None if unknown.
        parameters: Number of values in all tensors, or in those of all members of a composition.
        dtypes: Names of their torch dtypes, the most frequent first.
        metadata: All keys besides the widths; a tensor is described as text.
        members: Paths of a composition's members; empty for other files.

    Example:
        >>> import hnloader
        >>> from hnloader.demo import hypernetwork_paths
        >>> info = hnloader.inspect(hypernetwork_paths()["outline"])
        >>> info.format, info.container
        ('pt', 'zip')
    """

    path: Path | None
    name: str
    size: int
    format: str
    container: str
    program: str
    variant: str
    widths: tuple[int, ...]
    scopes: tuple[str, ...]
    families: tuple[str, ...]
    architecture: Architecture | None = None
    step: int | None = None
    checkpoint: str | None = None
    checkpoint_name: str | None = None
    parameters: int = 0
    dtypes: tuple[str, ...] = ()
    metadata: dict[str, object] = field(default_factory=dict)
    members: tuple[Path, ...] = ()
    _file: FileLike | None = field(default=None, repr=False, compare=False)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole file in hex; read at first use."""
        digest = hashlib.sha256()
        with open_source(self._given()) as source:
            source.file.seek(0)
            while piece := source.file.read(_CHUNK):
                digest.update(piece)
        return digest.hexdigest()

    @property
    def made_for(self) -> tuple[str, ...]:
        """The models that it is made for in words: families, or language models of a width; empty if unknown."""
        return made_for(self.scopes)

    @property
    def further(self) -> dict[str, object]:
        """The metadata that is not an attribute, without keys of None."""
        return {key: value for key, value in self.metadata.items() if key not in _ATTRIBUTES and value is not None}

    @property
    def short_hash(self) -> str:
        """The first 10 hex digits of `sha256`, which the webuis show and `.pt.optim` files name."""
        return self.sha256[:10]

    @cached_property
    def legacy_hash(self) -> str:
        """The 8 hex digits that the webuis of 2022 showed: the hash of 64 KiB at 1 MiB (empty in a smaller file)."""
        with open_source(self._given()) as source:
            return legacy_hash_of(source.file)

    def _given(self) -> FileLike:
        is_open = self._file is not None and not getattr(self._file, "closed", False)
        given = self._file if is_open else self.path
        if given is None:
            raise HypernetworkError(f"The file of {shown(self.name)} is closed. Read its hash before you close it.")
        return given

    def to_dict(self, hashes: bool = True) -> dict[str, object]:
        """Return the facts as plain values for JSON.

        Texts are bounded, because a file can mention one long text thousands of times: 1,048,576 characters of
        metadata, and 1,000 characters of other texts.

        Args:
            hashes: Read the whole file and include its hashes. Default: True.

        Returns:
            Values by name.

        Raises:
            HypernetworkError: The file cannot be read for its hashes.
        """
        result: dict[str, object] = {
            "path": str(self.path) if self.path is not None else None,
            "name": as_text(self.name, _LONGEST_FACT),
            "size": self.size,
            "format": self.format,
            "container": self.container,
            "program": self.program,
            "variant": as_text(self.variant, _LONGEST_FACT),
            "widths": list(self.widths),
            "scopes": [as_text(scope, _LONGEST_FACT) for scope in self.scopes],
            "families": list(self.families),
            "architecture": _architecture(self.architecture),
            "step": self.step,
            "checkpoint": _fact(self.checkpoint),
            "checkpoint_name": _fact(self.checkpoint_name),
            "parameters": self.parameters,
            "dtypes": list(self.dtypes),
            "metadata": plain(self.metadata, _MOST_TEXT),
            "members": [str(member) for member in self.members],
        }
        if hashes:
            result |= {"sha256": self.sha256, "short_hash": self.short_hash, "legacy_hash": self.legacy_hash}
        return result


def inspect(file: FileLike, folders: Iterable[str | os.PathLike[str]] = ()) -> FileInfo:
    """Inspect a hypernetwork file without reading its tensor data, in a few milliseconds.

    Args:
        file: Path, or an open binary file, which is read from its beginning and left open.
        folders: Folders to search for the members of a composition after the composition's own folder.

    Returns:
        Facts about the file.

    Raises:
        HypernetworkError: The errors of `hnloader.load`, except those about tensor data (damage, values that are not
            finite).

    Example:
        >>> import hnloader
        >>> from hnloader.demo import hypernetwork_paths
        >>> str(hnloader.inspect(hypernetwork_paths()["outline"]).architecture)
        '1-2-1, linear'
    """
    reader: Reader[FileInfo] = Reader(folders, _weights, _composition)
    return reader.read(file)


def _weights(source: Source, file: FileLike) -> FileInfo:
    contents = read_contents(source)
    metadata = contents.metadata
    counts: Counter[str] = Counter()
    for tensors in contents.sides.values():
        for info in tensors.values():
            counts[info.dtype] += info.count
    return FileInfo(
        path=source.path,
        name=contents.name(source.stem),
        size=source.size,
        format=contents.format,
        container=contents.container,
        program=contents.program,
        variant=contents.variant,
        widths=contents.widths,
        scopes=tuple(map(str, contents.scopes)),
        families=families_of(contents.scopes),
        architecture=contents.architecture,
        step=_number(metadata.get("step")),
        checkpoint=_text(metadata.get("sd_checkpoint")),
        checkpoint_name=_text(metadata.get("sd_checkpoint_name")),
        parameters=counts.total(),
        dtypes=tuple(dtype for dtype, _ in counts.most_common()),
        metadata={key: _without_tensors(value) for key, value in metadata.items()},
        _file=_open_file(file),
    )


def _composition(source: Source, file: FileLike, composition: Composition, named: dict[str, FileInfo]) -> FileInfo:
    file_format = format_of(source)
    assert file_format is not None
    members = list(named.values())
    scopes = all_scopes(source, [[as_scope(scope) for scope in member.scopes] for member in members])
    return FileInfo(
        path=source.path,
        name=source.stem,
        size=source.size,
        format=file_format.name,
        container="text",
        program=composition.program,
        variant="composition",
        widths=tuple(dict.fromkeys(scope.width for scope in scopes)),
        scopes=tuple(map(str, scopes)),
        families=families_of(scopes),
        parameters=sum(member.parameters for member in members),
        dtypes=tuple(dict.fromkeys(dtype for member in members for dtype in member.dtypes)),
        metadata={"structure": composition.text},
        members=tuple(member.path for member in members if member.path is not None),
        _file=_open_file(file),
    )


def _open_file(file: FileLike) -> FileLike | None:
    return None if isinstance(file, (str, os.PathLike)) else file


def _fact(text: str | None) -> str | None:
    return None if text is None else as_text(text, _LONGEST_FACT)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _without_tensors(value: object) -> object:
    return mapped(value, lambda part: f"tensor {part.dtype} {list(part.shape)}" if is_tensor_info(part) else part)


def _architecture(architecture: Architecture | None) -> dict[str, object] | None:
    if architecture is None:
        return None
    values = dataclasses.asdict(architecture)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
