"""Write a chain of hypernetworks as a `.hns` composition, which keeps it exactly."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from hnloader.conversion.merging import Part
from hnloader.conversion.planning import folded
from hnloader.errors import HypernetworkNotFoundError, NotMergeableError, UnsupportedArchitectureError
from hnloader.files import same_file
from hnloader.formats.hns import chain_text, is_member_name
from hnloader.formats.reading import MAX_NESTED_COMPOSITIONS, member_library, read_composition
from hnloader.formats.registry import suffixes
from hnloader.formats.source import open_source
from hnloader.library import Library, LibraryFile
from hnloader.loading import load
from hnloader.network import SIDES, Hypernetwork
from hnloader.texts import shown

__all__ = ["composition"]

_ROWS = 16


def composition(parts: Sequence[Part], target: str | os.PathLike[str] | None = None) -> str:
    """Return the text of a `.hns` file that keeps a chain exactly and finds its members beside it.

    Args:
        parts: The chain.
        target: The file to write the text to. Default: a new file beside the first part.

    Returns:
        The text.

    Raises:
        NotMergeableError: A strength is outside of 0 to 1 or differs between keys and values, or the file would not
            find these parts.
    """
    paths: list[Path] = []
    for part in parts:
        if part.path is None:
            raise NotMergeableError("A composition names files: save every hypernetwork first.")
        if not (part.k == part.v and 0 <= part.k <= 1):
            raise NotMergeableError(
                f"{part.path}: found the strengths {part.k:g} and {part.v:g}. A .hns file takes strengths from 0 to 1, "
                "the same for keys and values."
            )
        paths.append(part.path)
    file = None if target is None else Path(target)
    library = Library([file.parent if file is not None else path.parent for path in (paths[:1] or [Path()])])
    files = _files_beside(paths, file, library)
    for part, path in zip(parts, paths, strict=True):
        _check_nested(part.hypernetwork, path, file)
    members = [(_name_of(path, files[path], library, file), part.k) for part, path in zip(parts, paths, strict=True)]
    try:
        return chain_text(members)
    except UnsupportedArchitectureError as error:
        raise NotMergeableError(str(error)) from error


def _files_beside(paths: Sequence[Path], target: Path | None, library: Library) -> dict[Path, list[LibraryFile]]:
    """Return the entries of each part among the files that a composition finds. Raises NotMergeableError."""
    (folder,) = library.folders
    files: dict[Path, list[LibraryFile]] = {}
    for path in paths:
        if target is not None and same_file(path, target):
            raise NotMergeableError(f"{target}: this is one of the files to merge. Write the result elsewhere.")
        if path.suffix.lower() not in suffixes():
            raise NotMergeableError(
                f"{path}: a composition names files that end in {', '.join(suffixes())}. Rename it."
            )
        same = [file for file in library.files() if same_file(file.path, path)]
        files[path] = sorted(same, key=lambda file: file.relative.name != path.name)
    away = list(dict.fromkeys(path.name for path, found in files.items() if not found))
    if away:
        raise NotMergeableError(
            f"{target or folder}: a composition finds its members beside it. Put {', '.join(away)} into "
            f"{folder.resolve()} too, or write the composition beside them."
        )
    return files


def _name_of(path: Path, found: Sequence[LibraryFile], library: Library, target: Path | None) -> str:
    """Return the name by which a composition at `target` finds only this file."""
    for name in (name for file in found for name in library.names_of(file)):
        if is_member_name(name) and not _may_name_result(target, name):
            return name
    raise NotMergeableError(f"{path}: every name of this file in a composition could mean another file. Rename it.")


def _may_name_result(target: Path | None, name: str) -> bool:
    """Return True if the composition to write may answer to `name` itself."""
    own = () if target is None else (target.stem, target.name)
    return not name.startswith("./") and folded(PurePosixPath(name).name) in map(folded, own)


def _check_nested(given: Hypernetwork, path: Path, target: Path | None) -> None:
    """Raise NotMergeableError if a part is a composition that gives another result within the new one."""
    if given.architecture is not None:
        return
    _check_members(path, target, MAX_NESTED_COMPOSITIONS - 1)
    alone = load(path)
    for scope, side in itertools.product(given.scopes, SIDES):
        x = torch.randn(1, _ROWS, scope.width, generator=torch.Generator().manual_seed(scope.width))
        same = alone.scopes == given.scopes and torch.equal(
            alone.transform(side, x, scope=scope), given.transform(side, x, scope=scope)
        )
        if not same:
            raise NotMergeableError(
                f"{path}: without the folders of its members, this composition gives another result. Put its members "
                "beside it."
            )


def _check_members(path: Path, target: Path | None, depth: int) -> None:
    if target is not None and same_file(path, target):
        raise NotMergeableError(f"{path}: the composition would name itself. Write it elsewhere.")
    with open_source(path) as source:
        composition = read_composition(source)
        if composition is None:
            return
        if depth == 0:
            raise NotMergeableError(f"{path}: compositions would be nested too deeply. Merge some of them first.")
        library = member_library(source, ())
        for name in composition.structure.names():
            if _may_name_result(target, name):
                raise NotMergeableError(f"{path}: it names {shown(name)}, the name of the result. Choose another name.")
            try:
                _check_members(library.find(name), target, depth - 1)
            except HypernetworkNotFoundError as error:
                raise NotMergeableError(
                    f"{path}: its member {shown(name)} is missing beside it. Put it there. {error}"
                ) from error
