"""Find files by the hashes in images and webuis; each file is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hnloader.errors import HypernetworkError
from hnloader.files import LEGACY_OFFSET, legacy_hash_of, open_regular, read_regular, replacing, sha256_of
from hnloader.infotext import without_hash
from hnloader.library import Library, LibraryFile

__all__ = ["LEGACY_DIGITS", "LEGACY_OF_NOTHING", "Hashes", "find_by_hash", "find_named", "is_hash"]

# The webuis' first short hash, see `legacy_hash_of`.
LEGACY_DIGITS = 8
# The hash of every file of less than 1 MiB, which identifies none of them.
LEGACY_OF_NOTHING = hashlib.sha256(b"").hexdigest()[:LEGACY_DIGITS]

_HASH = re.compile(r"[0-9a-f]{8}|[0-9a-f]{10,64}")
_CACHE_NAME, _VERSION = "hashes.json", 1
_LARGEST_CACHE = 64 << 20


class Hashes:
    """Hashes of files. A file is read again if its size, modification time or inode changed.

    Args:
        cache: Folder in which `save` keeps the hashes for the next start; None keeps none.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._path = None if cache is None else cache / _CACHE_NAME
        self._known = {} if self._path is None else _read(self._path)
        self._legacy: dict[str, list[Any]] = {}
        self._unsaved = False

    def sha256(self, path: Path) -> str:
        """Return the sha256 of a file in hex. Raises OSError if it cannot be read."""
        stamp, key = _stamp(path), os.path.abspath(path)  # noqa: PTH100 - links are kept
        if (known := self._known.get(key)) is None or known[:-1] != stamp:
            known = self._known[key] = [*stamp, sha256_of(path)]
            self._unsaved = True
        return str(known[-1])

    def legacy(self, path: Path) -> str:
        """Return the 8 hex digits that the webuis of 2022 showed. Raises OSError if the file cannot be read."""
        stamp, key = _stamp(path), str(path)
        if stamp[0] <= LEGACY_OFFSET:
            return LEGACY_OF_NOTHING
        if (known := self._legacy.get(key)) is None or known[:-1] != stamp:
            with open_regular(path) as file:
                known = self._legacy[key] = [*stamp, legacy_hash_of(file)]
        return str(known[-1])

    def is_of(self, path: Path, digest: str) -> bool:
        """Return whether `digest`, 8 digits or the first 10 or more of a sha256, is the file's."""
        with contextlib.suppress(OSError):
            if len(digest) == LEGACY_DIGITS:
                return self.legacy(path) == digest
            return _HASH.fullmatch(digest) is not None and self.sha256(path).startswith(digest)
        return False

    def save(self) -> None:
        """Write new hashes to the cache. Does nothing without a cache, or if it cannot be written."""
        if self._path is None or not self._unsaved:
            return
        text = json.dumps({"version": _VERSION, "files": self._known}, separators=(",", ":"))
        with contextlib.suppress(HypernetworkError, OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(self._path) as temporary:
                temporary.write_text(text, encoding="ascii")
            self._unsaved = False


def is_hash(digest: str) -> bool:
    """Return whether hex digits identify a file."""
    return _HASH.fullmatch(digest) is not None and digest != LEGACY_OF_NOTHING


def find_by_hash(
    library: Library, name: str, digest: str, hashes: Hashes, *, everywhere: bool = True
) -> LibraryFile | None:
    """Return the library's file with a hash and any name; files called `name` come first.

    Args:
        library: The files to search.
        name: The file's name when the hash was taken.
        digest: 8 hex digits as the webuis of 2022 show them, or the first 10 or more of a sha256.
        hashes: Known hashes.
        everywhere: For a sha256, read files of other names too, each of them whole.

    Returns:
        The file, or None if it is missing or the hash does not identify a file.
    """
    if not is_hash(digest):
        return None
    return next(
        (file for file in _candidates(library, name, digest, everywhere) if hashes.is_of(file.path, digest)), None
    )


def find_named(library: Library, name: str) -> Path:
    """Return the file with a name, which may end in a hash as in images of 2022: `ink(3fa2c1d0)`.

    The file with that hash comes first, whatever its name, then the file with the name.

    Raises:
        HypernetworkNotFoundError: No file has the name.
    """
    plain, digest = without_hash(name)
    if library.matches(name) or plain == name:
        return library.find(name)
    found = find_by_hash(library, plain, digest, Hashes(), everywhere=False)
    return library.find(plain) if found is None else found.path


def _candidates(library: Library, name: str, digest: str, everywhere: bool) -> Iterator[LibraryFile]:
    named = library.matches(name)
    yield from named
    if everywhere or len(digest) == LEGACY_DIGITS:
        yield from (file for file in library.files() if file not in named)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _read(path: Path) -> dict[str, list[Any]]:
    """Return the hashes in a cache; none if it is missing, damaged or of another version."""
    try:
        if path.stat().st_size > _LARGEST_CACHE:
            return {}
        found = json.loads(read_regular(path))
        if found["version"] != _VERSION:
            return {}
        return {
            key: value
            for key, value in found["files"].items()
            if isinstance(value, list) and len(value) == 4 and isinstance(value[3], str) and _HASH.fullmatch(value[3])
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
