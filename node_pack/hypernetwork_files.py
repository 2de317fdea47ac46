"""The hypernetwork files in ComfyUI's folders."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths
import torch

import hnloader
from hnloader.errors import HypernetworkError, HypernetworkNotFoundError
from hnloader.formats.registry import suffixes
from hnloader.library import Library
from hnloader.network import Hypernetwork
from hnloader.texts import shown, without_folders

FOLDER = "hypernetworks"
# The choice in an empty folder; ComfyUI's page cannot show an empty list.
NO_FILES = "(no files in models/hypernetworks)"
_HINT = "Copy the file to ComfyUI/models/hypernetworks, then press R."

# Size and time of change identify the contents of a file.
Stamp = tuple[str, int, int]
_loaded: weakref.WeakValueDictionary[Stamp, Hypernetwork] = weakref.WeakValueDictionary()


def add_suffixes() -> None:
    """Let ComfyUI list compositions (`.hns`) and safetensors files as hypernetworks."""
    paths, known = folder_paths.folder_names_and_paths[FOLDER]
    # Other folders of models share the set.
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*known, *suffixes()})
    # ComfyUI's own nodes may have listed the folder before.
    getattr(folder_paths, "filename_list_cache", {}).pop(FOLDER, None)


def folders() -> list[Path]:
    """Return ComfyUI's folders of hypernetworks, the first one preferred."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]


def names() -> list[str]:
    """Return the names of all files as ComfyUI shows them, such as `styles/ink.pt`."""
    found = folder_paths.get_filename_list(FOLDER)
    return [name for name in found if Path(name).suffix.lower() in suffixes()]


def choices() -> list[str]:
    """Return the entries of a list of files."""
    return names() or [NO_FILES]


def path_of(name: str) -> Path:
    """Return the path of a listed file. A name from another system may have other slashes.

    Raises:
        HypernetworkNotFoundError: The list lacks the name.
    """
    if name == NO_FILES:
        raise HypernetworkNotFoundError(f"Hypernetworks: found no files. {_HINT}")
    by_slashes = {each.replace("\\", "/"): each for each in names()}
    listed = by_slashes.get(name.replace("\\", "/"))
    path = None if listed is None else folder_paths.get_full_path(FOLDER, listed)
    if path is None:
        raise HypernetworkNotFoundError(f"Hypernetwork {shown(name)}: the file is missing. {_HINT}")
    return Path(path)


def tagged_path(name: str) -> Path:
    """Return the path of the file that a tag in a prompt names, with or without suffix and subfolder.

    Raises:
        HypernetworkNotFoundError: The name is unknown.
    """
    library = Library(folders(), hint=_HINT)
    try:
        return library.find(name)
    except HypernetworkNotFoundError:
        near = " or ".join(map(shown, library.suggestions(name)))
        hint = f"Did you mean {near}?" if near else _HINT
        raise HypernetworkNotFoundError(f"Hypernetwork {shown(name)}: found no such file. {hint}") from None


@contextmanager
def without_folder_names() -> Iterator[None]:
    """Shorten paths in messages to their part below the folders, because workflows and screenshots are shared."""
    try:
        yield
    except HypernetworkError as error:
        raise type(error)(without_folders(str(error), folders())) from None


def stamp_of(path: Path) -> Stamp:
    """Return a value that changes with the file.

    Raises:
        HypernetworkError: The file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise HypernetworkError(f"{path.name}: cannot read the file ({error.strerror}). Check the disk.") from error
    return str(path), status.st_size, status.st_mtime_ns


def stamps_of(path: Path) -> tuple[Stamp, ...]:
    """Return a value that changes with the file or with a member of a composition."""
    members: tuple[Path, ...] = ()
    if path.suffix.lower() == ".hns":
        with without_folder_names():
            members = hnloader.inspect(path, folders()).members
    return tuple(map(stamp_of, (path, *members)))


def load(path: Path) -> Hypernetwork:
    """Load a file. Nodes that use the same file share one hypernetwork.

    Raises:
        HypernetworkError: The file cannot be used; the message says why.
    """
    stamp = stamp_of(path)
    hypernetwork = _loaded.get(stamp)
    if hypernetwork is None:
        # ComfyUI runs nodes in inference mode, and copies made there have other rules.
        with without_folder_names(), torch.inference_mode(False), torch.no_grad():
            hypernetwork = hnloader.load(path, folders())
        if path.suffix.lower() != ".hns":  # the members of a composition can change on their own
            _loaded[stamp] = hypernetwork
    return hypernetwork
