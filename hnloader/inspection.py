"""What a hypernetwork file holds, told from its header alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hnloader.errors import HypernetworkError
from hnloader.families import families_of
from hnloader.files import legacy_hash_of
from hnloader.formats.architecture import ARCHITECTURE_KEYS
from hnloader.formats.composition import Composition, all_widths
from hnloader.formats.contents import is_tensor_info
from hnloader.formats.reading import Reader, read_contents
from hnloader.formats.registry import format_of
from hnloader.formats.source import FileLike, Source, open_source
from hnloader.formats.trees import mapped
from hnloader.network import Architecture
from hnloader.texts import as_text, plain, shown

_CHUNK = 1 << 20
_MOST_TEXT = 1 << 20  # characters of metadata in `FileInfo.to_dict`
_LONGEST_FACT = 1_000  # characters of a name there
# Keys that attributes of a `FileInfo` tell.
_TOLD = frozenset({"name", "step", "sd_checkpoint", "sd_checkpoint_name", *ARCHITECTURE_KEYS})


@dataclass(frozen=True)
class FileInfo:
    """What one file holds.

    Attributes:
        path: where it lies; None for a file object without a name.
        name: the name in the file, else its stem.
        size: bytes.
        format: "pt", "safetensors" or "hns".
        container: "zip", "legacy", "safetensors" or "text".
        program: which program wrote it, as far as the file tells.
        variant: which kind of file of that program.
        widths: context widths that it changes.
        families: names of the model families that it is made for; empty when no known family has its widths.
        architecture: how the sides are built; None for a composition.
        step: training steps, None when the file does not say.
        checkpoint: short hash of the checkpoint that it was trained on.
        checkpoint_name: that checkpoint's name.
        parameters: number of values in all tensors; of all members for a composition.
        dtypes: their torch dtypes by name, the most frequent first.
        metadata: every key besides the widths; a tensor in it is shown as text.
        members: paths of a composition's members, empty for others.
    """

    path: Path | None
    name: str
    size: int
    format: str
    container: str
    program: str
    variant: str
    widths: tuple[int, ...]
    families: tuple[str, ...]
    architecture: Architecture | None
    step: int | None
    checkpoint: str | None
    checkpoint_name: str | None
    parameters: int
    dtypes: tuple[str, ...]
    metadata: dict[str, object]
    members: tuple[Path, ...] = ()
    _file: FileLike | None = field(default=None, repr=False, compare=False)

    @cached_property
    def sha256(self) -> str:
        """sha256 of the whole file in hex; read at first use, in pieces of 1 MiB."""
        digest = hashlib.sha256()
        with open_source(self._given()) as source:
            source.file.seek(0)
            while piece := source.file.read(_CHUNK):
                digest.update(piece)
        return digest.hexdigest()

    @property
    def further(self) -> dict[str, object]:
        """The metadata that no other attribute tells, without keys of None."""
        return {key: value for key, value in self.metadata.items() if key not in _TOLD and value is not None}

    @property
    def short_hash(self) -> str:
        """The first 10 hex digits of `sha256`, which the webuis show and `.pt.optim` files name."""
        return self.sha256[:10]

    @cached_property
    def legacy_hash(self) -> str:
        """The 8 hex digits that the webuis of 2022 showed, of 64 KiB at 1 MiB (of nothing in a smaller file)."""
        with open_source(self._given()) as source:
            return legacy_hash_of(source.file)

    def _given(self) -> FileLike:
        is_open = self._file is not None and not getattr(self._file, "closed", False)
        given = self._file if is_open else self.path
        if given is None:
            raise HypernetworkError(f"the file of {shown(self.name)} is closed, so that its hash cannot be told")
        return given

    def to_dict(self, hashes: bool = True) -> dict[str, object]:
        """The same as plain values that JSON can hold; with `hashes` the whole file is read for them.

        A file can mention one long text thousands of times: of more than 1,048,576 characters of metadata the rest is
        left out, as is what follows the first 1,000 characters of other texts.
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
    """Tell what a hypernetwork file holds without reading its tensor data, in a few milliseconds.

    Args:
        file: a path, or an open binary file.
        folders: where the members of a `.hns` file are looked for, after the folder that it lies in.

    Raises:
        What `hnloader.load` raises, but for what only the tensor data show (values that are not finite,
        damaged data).
    """
    reader: Reader[FileInfo] = Reader(folders, _weights, _composition)
    return reader.read(file)


def _weights(source: Source, file: FileLike) -> FileInfo:
    contents = read_contents(source)
    metadata = contents.metadata
    counts: dict[str, int] = {}
    for tensors in contents.sides.values():
        for info in tensors.values():
            counts[info.dtype] = counts.get(info.dtype, 0) + info.count
    return FileInfo(
        path=source.path,
        name=_text(metadata.get("name")) or source.stem,
        size=source.size,
        format=contents.format,
        container=contents.container,
        program=contents.program,
        variant=contents.variant,
        widths=contents.widths,
        families=families_of(contents.widths),
        architecture=contents.architecture,
        step=_number(metadata.get("step")),
        checkpoint=_text(metadata.get("sd_checkpoint")),
        checkpoint_name=_text(metadata.get("sd_checkpoint_name")),
        parameters=sum(counts.values()),
        dtypes=tuple(sorted(counts, key=lambda dtype: -counts[dtype])),
        metadata={key: _without_tensors(value) for key, value in metadata.items()},
        _file=None if isinstance(file, (str, os.PathLike)) else file,
    )


def _composition(source: Source, file: FileLike, composition: Composition, named: dict[str, FileInfo]) -> FileInfo:
    found = format_of(source)
    assert found is not None
    members = list(named.values())
    widths = all_widths(source, [member.widths for member in members])
    return FileInfo(
        path=source.path,
        name=source.stem,
        size=source.size,
        format=found.name,
        container="text",
        program=composition.program,
        variant="composition",
        widths=widths,
        families=families_of(widths),
        architecture=None,
        step=None,
        checkpoint=None,
        checkpoint_name=None,
        parameters=sum(member.parameters for member in members),
        dtypes=tuple(dict.fromkeys(dtype for member in members for dtype in member.dtypes)),
        metadata={"structure": composition.text},
        members=tuple(member.path for member in members if member.path is not None),
        _file=None if isinstance(file, (str, os.PathLike)) else file,
    )


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
    return {
        "layer_structure": list(architecture.layer_structure),
        "activation": architecture.activation,
        "norm": architecture.norm,
        "dropout": list(architecture.dropout),
        "activate_output": architecture.activate_output,
        "residual": architecture.residual,
        "dropout_before_norm": architecture.dropout_before_norm,
    }
