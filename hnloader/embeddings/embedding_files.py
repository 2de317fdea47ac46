"""Find embeddings in folders, in all their forms.

A folder can hold thousands of images, and `.bin` files of other programs. These count only if they hold an embedding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from hnloader.embeddings import embedding_images
from hnloader.embeddings.embedding_reader import SUFFIXES, load_embedding
from hnloader.errors import HypernetworkError, UnknownFormatError
from hnloader.formats.registry import suffixes
from hnloader.formats.source import open_source
from hnloader.library import Library

__all__ = [
    "all_suffixes",
    "counts",
    "embedding_library",
    "embedding_named",
    "is_embedding",
    "library_of_all",
    "word_of",
]

_IMAGES = (".png", ".webp")
_PREVIEW = ".preview"  # the webuis' mark of an image that shows a file


def embedding_library(folders: Iterable[str | os.PathLike[str]]) -> Library:
    """Return the library of the files in folders that can be embeddings."""
    return Library(folders, SUFFIXES, accepts=counts)


def library_of_all(folders: Iterable[str | os.PathLike[str]]) -> Library:
    """Return the library of the hypernetworks and embeddings in folders."""
    return Library(folders, all_suffixes(), accepts=counts)


def all_suffixes(*, weights_only: bool = False) -> tuple[str, ...]:
    """Return the suffixes of hypernetworks and embeddings, the preferred one first; see `registry.suffixes`."""
    return tuple(dict.fromkeys((*suffixes(weights_only=weights_only), *SUFFIXES)))


def embedding_named(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the embedding of a name in folders: that of a file, or the word of an image. None if there is none."""
    library = embedding_library(folders)
    if found := library.matches(name):
        return found[0].path
    wanted = name.strip("<> ").casefold()
    images = (file.path for file in library.files() if file.path.suffix.lower() in _IMAGES)
    return next((path for path in images if word_of(path).casefold() == wanted), None)


def word_of(path: Path) -> str:
    """Return the word of an embedding: the stem of its file, or the name in a sound image."""
    if path.suffix.lower() in _IMAGES:
        with contextlib.suppress(HypernetworkError):
            return load_embedding(path).name
    return path.stem


def counts(path: Path) -> bool:
    """Return True for a file that a listing shows: any except images and `.bin` files that are something else."""
    suffix = path.suffix.lower()
    if suffix not in (".bin", *_IMAGES):
        return True
    try:
        status = path.stat()
    except OSError:  # deleted meanwhile
        return False
    return _holds_embedding(path, status.st_size, status.st_mtime_ns, status.st_ino)


def is_embedding(path: Path) -> bool:
    """Return True for a file with a sound embedding. Of most other images, only the first rows are read."""
    return _holds(path, damaged=False)


@lru_cache(maxsize=20_000)
def _holds_embedding(path: Path, size: int, modified: int, inode: int) -> bool:
    """Decide once for each state of a file.

    A file that is damaged or not safe counts, so that a listing shows it: each `.bin`, and images that say that they
    hold an embedding.
    """
    if path.suffix.lower() not in _IMAGES:
        return _loads(path, damaged=True)
    return not path.stem.lower().endswith(_PREVIEW) and _holds(path, damaged=True)


def _holds(path: Path, *, damaged: bool) -> bool:
    """Return True for a file with an embedding, or if wanted for a damaged image that says that it has one."""
    try:
        with open_source(path) as source:
            if embedding_images.is_image(source.head) and not embedding_images.may_hold(source):
                return False
            named = damaged and embedding_images.names_embedding(source)
    except HypernetworkError:
        return False
    return _loads(path, damaged=named)


def _loads(path: Path, *, damaged: bool) -> bool:
    """Return True for a file with an embedding, the given value for a damaged one, and False for any other file."""
    try:
        load_embedding(path)
    except UnknownFormatError:
        return False
    except HypernetworkError:
        return damaged
    return True
