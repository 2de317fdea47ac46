"""The library's files, listed at once and inspected little by little.

Listing 2,000 files takes hundredths of a second, inspecting them some seconds. So a page appears from names, sizes and
dates alone; its files are inspected when shown, the others afterwards. Results stay valid while a file's size, time
and inode are unchanged. With a cache folder they also last until the next start (`index.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from hnloader.embeddings.embedding_files import library_of_all
from hnloader.embeddings.embedding_info import EmbeddingInfo, read_if_embedding
from hnloader.errors import HypernetworkError, UnknownFormatError
from hnloader.families import all_families
from hnloader.files import open_regular
from hnloader.inspection import inspect
from hnloader.texts import as_text
from hnloader.ui.catalog_entry import Entry
from hnloader.ui.index import index_path, read_entry, read_index, write_index
from hnloader.ui.sidecars import read_notes, save_notes

__all__ = ["ALL", "BAD", "DUPLICATES", "EMBEDDINGS", "OTHER_WIDTHS", "SORTS", "Catalog", "Counts", "filters"]

SORTS = ("name", "newest", "largest", "most steps", "model family")
ALL, OTHER_WIDTHS, BAD, DUPLICATES = "all files", "unknown model", "files with errors", "duplicates"
EMBEDDINGS = "embeddings"

_PIECE = 2**16
_LONGEST_WORDS = 2_000  # characters per field that a search covers
# At most this many inspections are lost when the program is killed.
_UNSAVED = 2_000


def filters() -> tuple[str, ...]:
    """Return the names of all filters."""
    return (ALL, *(family.name for family in all_families()), OTHER_WIDTHS, EMBEDDINGS, BAD, DUPLICATES)


@dataclass(frozen=True)
class Counts:
    """Numbers of files, inspected files and files with errors."""

    files: int
    inspected: int
    bad: int


class Catalog:
    """The files of some folders. Every method may be called from several threads.

    Args:
        folders: Returns the folders.
        cache: Folder for the index. None keeps none.
    """

    def __init__(self, folders: Callable[[], Sequence[Path]], cache: Path | None = None) -> None:
        self._folders = folders
        self._cache = cache
        self._unsaved = 0
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] | None = None
        self._hashes: dict[tuple[str, str, tuple[int, int, int]], str] = {}

    def folders(self) -> tuple[Path, ...]:
        """Return the current folders."""
        return tuple(map(Path, self._folders()))

    def refresh(self) -> None:
        """List the folders again. Unchanged files stay inspected."""
        folders = self.folders()
        found = {}
        for file in library_of_all(folders).files():
            try:
                status = file.path.stat()
            except OSError:  # removed meanwhile
                continue
            key = _key_of(file.path)
            found[key] = Entry(key, file, status.st_size, status.st_mtime_ns, status.st_ino)
        with self._lock:
            if self._entries is not None:
                found = {key: _newer(self._entries.get(key), entry) for key, entry in found.items()}
            elif self._cache is not None:
                records = read_index(index_path(self._cache, folders))
                found = {key: read_entry(records.get(key), entry) for key, entry in found.items()}
            self._entries = found

    def save(self) -> None:
        """Write the index if there is something new."""
        with self._lock:
            entries, self._unsaved, unsaved = self.entries(), 0, self._unsaved
        if self._cache is not None and unsaved:
            write_index(index_path(self._cache, self.folders()), entries)

    def entries(self) -> list[Entry]:
        """Return every file in lookup order. The first call lists the folders."""
        with self._lock:
            if self._entries is None:
                self.refresh()
            return list((self._entries or {}).values())

    def get(self, key: str | None) -> Entry | None:
        """Return the inspected file of a key, or None for an unknown key."""
        self.entries()
        with self._lock:
            entry = (self._entries or {}).get(key or "")
        return None if entry is None else self.inspect(entry)

    def find(self, path: Path, *, read: bool = True) -> Entry | None:
        """Return the file at a path of these folders in its present state, or None for another path.

        Without `read`, a file that was not inspected yet stays so.
        """
        key = _key_of(path)
        self.entries()
        entry = (self._entries or {}).get(key)
        with contextlib.suppress(OSError):
            status = path.stat()
            if entry is None or entry.stamp != (status.st_size, status.st_mtime_ns, status.st_ino):
                self.refresh()
                entry = (self._entries or {}).get(key)
        return self.inspect(entry) if read and entry is not None else entry

    def inspect(self, entry: Entry) -> Entry:
        """Return the entry with `info` or `problem`, reading the file's header if needed."""
        if entry.inspected:
            return entry
        try:
            found = replace(entry, info=inspect(entry.path, self.folders()), notes=read_notes(entry.path))
        except HypernetworkError as error:
            problem = as_text(error, _LONGEST_WORDS)
            found = replace(entry, problem=problem, embedding=_embedding(entry, error), notes=read_notes(entry.path))
        except OSError as error:
            found = replace(entry, problem=f"{entry.path}: {error.strerror or error}.")
        with self._lock:
            entries = self._entries or {}
            if (current := entries.get(entry.key)) is not None and current.stamp == found.stamp:
                entries[entry.key] = found
                self._unsaved += found.info is not None
            many = self._unsaved >= _UNSAVED
        if many:
            self.save()
        return found

    def inspect_all(self) -> Iterator[tuple[int, int]]:
        """Inspect every file; yield (files done, files in total) after each."""
        entries = self.entries()
        for number, entry in enumerate(entries, 1):
            self.inspect(entry)
            yield number, len(entries)
        self.save()

    def save_notes(self, entry: Entry, notes: str) -> None:
        """Save notes beside the file. Raises HypernetworkError (see `sidecars.save_notes`)."""
        save_notes(entry.path, notes)
        with self._lock:
            if self._entries is not None and entry.key in self._entries:
                self._entries[entry.key] = replace(entry, notes=notes)
                self._unsaved += 1

    def counts(self) -> Counts:
        """Count the files."""
        entries = self.entries()
        bad = sum(entry.broken for entry in entries)
        return Counts(len(entries), sum(entry.inspected for entry in entries), bad)

    def search(self, query: str = "", sort: str = SORTS[0], only: str = ALL) -> list[Entry]:
        """Return the files that hold every word of a query.

        Args:
            query: Words, in any case. They match the path and, in inspected files, the name in the file, program,
                family, architecture, checkpoint and notes.
            sort: One of `SORTS`.
            only: One of `filters()`. Call `inspect_all` first for orders and filters that depend on contents.
        """
        words = _folded(query).split()
        entries = [entry for entry in self.entries() if all(word in _text(entry) for word in words)]
        if only == DUPLICATES:
            copies = {entry.key for group in self.duplicates() for entry in group}
            hashes = {entry.key: self.sha256(entry) for entry in entries if entry.key in copies}
            kept = [entry for entry in entries if entry.key in copies]
            return sorted(kept, key=lambda entry: (hashes[entry.key], entry.label))
        return sorted((entry for entry in entries if _matches(entry, only)), key=_order(sort))

    def duplicates(self) -> list[list[Entry]]:
        """Return groups of two or more files with the same content.

        Files of the same size are compared by three pieces of 64 KiB, and if these agree by their sha256.
        """
        return self._copies(self.entries())

    def copies(self, entry: Entry) -> list[Entry]:
        """Return the other files with the content of this one."""
        for group in self._copies([other for other in self.entries() if other.size == entry.size]):
            others = [other for other in group if other.key != entry.key]
            if len(others) < len(group):
                return others
        return []

    def _copies(self, entries: list[Entry]) -> list[list[Entry]]:
        groups = [entries]
        for criterion in (lambda entry: str(entry.size), self._sample, self.sha256):
            groups = [part for group in groups for part in _split(group, criterion)]
        return groups

    def sha256(self, entry: Entry) -> str:
        """Return a file's sha256 in hex, cached until the file changes, or a unique text if it cannot be read."""
        return self._hash("sha256", entry, lambda file: iter(lambda: file.read(2**20), b""))

    def _sample(self, entry: Entry) -> str:
        def pieces(file: BinaryIO) -> Iterator[bytes]:
            for start in (0, entry.size // 2, max(0, entry.size - _PIECE)):
                file.seek(start)
                yield file.read(_PIECE)

        return self._hash("sample", entry, pieces)

    def _hash(self, kind: str, entry: Entry, pieces: Callable[[BinaryIO], Iterator[bytes]]) -> str:
        name = kind, entry.key, entry.stamp
        if name not in self._hashes:
            digest = hashlib.sha256()
            try:
                with open_regular(entry.path) as file:
                    for piece in pieces(file):
                        digest.update(piece)
            except OSError:
                return f"unreadable {entry.key}"
            self._hashes[name] = digest.hexdigest()
        return self._hashes[name]


def _key_of(path: Path) -> str:
    return hashlib.sha256(str(path).encode(errors="surrogatepass")).hexdigest()[:16]


def _embedding(entry: Entry, error: HypernetworkError) -> EmbeddingInfo | None:
    """Return the contents of an embedding; None for another file, or a damaged one."""
    if not isinstance(error, UnknownFormatError):
        return None
    try:
        return read_if_embedding(entry.path)
    except (HypernetworkError, OSError):
        return None


def _newer(known: Entry | None, found: Entry) -> Entry:
    if known is None or known.stamp != found.stamp or known.problem is not None:
        return found  # inspect errors again: a composition's missing member may exist now
    return known


def _split(group: list[Entry], criterion: Callable[[Entry], str]) -> list[list[Entry]]:
    parts: dict[str, list[Entry]] = defaultdict(list)
    for entry in group:
        parts[criterion(entry)].append(entry)
    return [part for part in parts.values() if len(part) > 1]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _text(entry: Entry) -> str:
    info = entry.info
    parts = [entry.label, entry.notes, entry.problem or ""]
    if info is not None:
        parts += [info.name, info.program, info.variant, *info.families, str(info.architecture or "composition")]
        parts += [info.checkpoint or "", info.checkpoint_name or ""]
    return _folded("\n".join(part[:_LONGEST_WORDS] for part in parts))


def _matches(entry: Entry, only: str) -> bool:
    if only == ALL:
        return True
    if only == BAD:
        return entry.broken
    if only == EMBEDDINGS:
        return entry.embedding is not None
    if entry.info is None:
        return False
    return bool(entry.info.widths) and not entry.info.families if only == OTHER_WIDTHS else only in entry.info.families


def _order(sort: str) -> Callable[[Entry], tuple[object, ...]]:
    def key(entry: Entry) -> tuple[object, ...]:
        first: dict[str, object] = {
            "newest": -entry.modified,
            "largest": -entry.size,
            "most steps": -((entry.info and entry.info.step) or 0),
            "model family": (entry.info.families if entry.info is not None else ()) or ("~",),  # no family: last
        }
        return first.get(sort, 0), _folded(entry.label), entry.label

    return key
