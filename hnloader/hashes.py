"""Finding files by the hashes that images and webuis name them by, each file being read once for them."""

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

# The webuis' first short hash, see `legacy_hash_of`.
LEGACY_DIGITS = 8
# What every file of less than 1 MiB has: it tells none of them.
LEGACY_OF_NOTHING = hashlib.sha256(b"").hexdigest()[:LEGACY_DIGITS]

_HASH = re.compile(r"[0-9a-f]{8}|[0-9a-f]{10,64}")
_CACHE_NAME, _VERSION = "hashes.json", 1
_LARGEST_CACHE = 64 << 20


class Hashes:
    """Hashes of files. A file is read again when its size, time of change or inode differ.

    Args:
        cache: A folder in which `save` keeps them for the next start; None keeps nothing.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._path = None if cache is None else cache / _CACHE_NAME
        self._known = {} if self._path is None else _read(self._path)
        self._legacy: dict[str, list[Any]] = {}
        self._unsaved = False

    def sha256(self, path: Path) -> str:
        """Return the sha256 of a file in hex. Raises OSError where it cannot be read."""
        stamp, key = _stamp(path), os.path.abspath(path)  # noqa: PTH100 - links stay as they are
        if (known := self._known.get(key)) is None or known[:-1] != stamp:
            known = self._known[key] = [*stamp, sha256_of(path)]
            self._unsaved = True
        return str(known[-1])

    def legacy(self, path: Path) -> str:
        """Return the 8 hex digits that the webuis of 2022 showed. Raises OSError where the file cannot be read."""
        stamp, key = _stamp(path), str(path)
        if stamp[0] <= LEGACY_OFFSET:
            return LEGACY_OF_NOTHING
        if (known := self._legacy.get(key)) is None or known[:-1] != stamp:
            with open_regular(path) as file:
                known = self._legacy[key] = [*stamp, legacy_hash_of(file)]
        return str(known[-1])

    def is_of(self, path: Path, digest: str) -> bool:
        """True where `digest`, of 8 digits or the first 10 or more of a sha256, is the file's; False for any other."""
        with contextlib.suppress(OSError):
            if len(digest) == LEGACY_DIGITS:
                return self.legacy(path) == digest
            return _HASH.fullmatch(digest) is not None and self.sha256(path).startswith(digest)
        return False

    def save(self) -> None:
        """Write what is new to the cache, where there is one; a cache that cannot be written is done without."""
        if self._path is None or not self._unsaved:
            return
        text = json.dumps({"version": _VERSION, "files": self._known}, separators=(",", ":"))
        with contextlib.suppress(HypernetworkError, OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(self._path) as temporary:
                temporary.write_text(text, encoding="ascii")
            self._unsaved = False


def is_hash(digest: str) -> bool:
    """True for hex digits that tell a file from others."""
    return _HASH.fullmatch(digest) is not None and digest != LEGACY_OF_NOTHING


def find_by_hash(
    library: Library, name: str, digest: str, hashes: Hashes, *, everywhere: bool = True
) -> LibraryFile | None:
    """Return the library's file with a hash, whatever its name; one that is called `name` comes first.

    Args:
        library: The files to look at.
        name: What the file was called where the hash was taken.
        digest: 8 hex digits as the webuis of 2022 show them, or the first 10 or more of a sha256.
        hashes: What is known of the files.
        everywhere: With a sha256 also read files of other names, each of them whole.

    Returns:
        The file, or None where there is none or the hash tells nothing.
    """
    if not is_hash(digest):
        return None
    return next(
        (file for file in _candidates(library, name, digest, everywhere) if hashes.is_of(file.path, digest)), None
    )


def find_named(library: Library, name: str) -> Path:
    """Return the file that a name stands for, also a name with a hash as in images of 2022: `ink(3fa2c1d0)`.

    The file with that hash is the one, whatever its name; where there is none, the file of the name.

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
    """The hashes in a cache; none where it is missing, damaged or of another version."""
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
