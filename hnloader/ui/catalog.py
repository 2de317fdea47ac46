"""What the library page shows: the files of some folders, listed at once and looked into little by little.

Listing 2,000 files takes a few hundredths of a second, looking into them (`hnloader.inspect`) a few seconds. So a
page is shown from names, sizes and dates alone, the files on it are looked into when they are shown, and the rest
afterwards. What was found is kept for as long as a file's size, time of change and inode stay the same, also from one
start to the next where there is a folder to keep it in (`index.py`).
"""

from __future__ import annotations

import hashlib
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from hnloader.errors import HypernetworkError
from hnloader.families import all_families
from hnloader.files import open_regular
from hnloader.inspection import inspect
from hnloader.library import Library
from hnloader.texts import as_text
from hnloader.ui.catalog_entry import Entry
from hnloader.ui.index import index_path, known, read_index, write_index
from hnloader.ui.sidecars import read_notes, save_notes

SORTS = ("name", "newest", "largest", "most steps", "model family")
ALL, OTHER_WIDTHS, BAD, DUPLICATES = "all files", "no known model", "bad files", "duplicates"


def filters() -> tuple[str, ...]:
    """Return the names of all filters."""
    return (ALL, *(family.name for family in all_families()), OTHER_WIDTHS, BAD, DUPLICATES)


_PIECE = 2**16
_LONGEST_WORDS = 2_000  # characters of what is searched, for each thing that a file tells
# So many files may have to be looked into again when the program is killed before it has looked into all.
_UNSAVED = 2_000


@dataclass(frozen=True)
class Counts:
    """How many files there are, how many were looked into, and how many of those are bad."""

    files: int
    looked_into: int
    bad: int


class Catalog:
    """The files of the folders that `folders` returns. Every method may be called from several threads."""

    def __init__(self, folders: Callable[[], Sequence[Path]], cache: Path | None = None) -> None:
        """`cache`: the folder for what is known, for the next start; None keeps nothing."""
        self._folders = folders
        self._cache = cache
        self._unsaved = 0
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] | None = None
        self._hashes: dict[tuple[str, int, int, int], str] = {}

    def folders(self) -> tuple[Path, ...]:
        """The folders as they are now."""
        return tuple(map(Path, self._folders()))

    def refresh(self) -> None:
        """List the folders anew; a file that has not changed keeps what is known of it."""
        folders = self.folders()
        found = {}
        for file in Library(folders).files():
            try:
                status = file.path.stat()
            except OSError:  # removed since it was listed
                continue
            key = hashlib.sha256(str(file.path).encode(errors="surrogatepass")).hexdigest()[:16]
            found[key] = Entry(key, file, status.st_size, status.st_mtime_ns, status.st_ino)
        with self._lock:
            before = self._entries
            if before is None:
                before = self._from_index(folders, found)
            self._entries = {key: _newer(before.get(key), entry) for key, entry in found.items()}

    def _from_index(self, folders: Sequence[Path], found: dict[str, Entry]) -> dict[str, Entry]:
        """Those of the files that an earlier run has looked into."""
        records = read_index(index_path(self._cache, folders)) if self._cache is not None else {}
        told = {}
        for key, entry in found.items():
            if (said := known(records.get(key), entry)) is not None:
                info, notes = said
                told[key] = replace(entry, info=info, notes=read_notes(entry.path) if notes is None else notes)
        return told

    def save(self) -> None:
        """Keep what is known for the next start, where there is a folder for it and something new."""
        with self._lock:
            entries, self._unsaved, unsaved = self.entries(), 0, self._unsaved
        if self._cache is not None and unsaved:
            write_index(index_path(self._cache, self.folders()), entries)

    def entries(self) -> list[Entry]:
        """Every file, in the order in which names are looked up; lists the folders at the first call."""
        with self._lock:
            if self._entries is None:
                self.refresh()
            return list((self._entries or {}).values())

    def get(self, key: str | None) -> Entry | None:
        """The file of a key, looked into; None where the page names no file of the library."""
        self.entries()
        with self._lock:
            entry = (self._entries or {}).get(key or "")
        return None if entry is None else self.look_into(entry)

    def look_into(self, entry: Entry) -> Entry:
        """The entry with `info` or `problem`; reads the file's header unless that is known."""
        if entry.looked_into:
            return entry
        folders = self.folders()
        try:
            looked = replace(entry, info=inspect(entry.path, folders), notes=read_notes(entry.path))
        except HypernetworkError as error:
            looked = replace(entry, problem=as_text(error, _LONGEST_WORDS), notes=read_notes(entry.path))
        except OSError as error:
            looked = replace(entry, problem=f"{entry.path}: {error.strerror or error}")
        with self._lock:
            entries = self._entries or {}
            if (current := entries.get(entry.key)) is not None and _stamp(current) == _stamp(looked):
                entries[entry.key] = looked
                self._unsaved += looked.info is not None
            many = self._unsaved >= _UNSAVED
        if many:
            self.save()
        return looked

    def annotate(self, entry: Entry, notes: str) -> Entry:
        """Save notes beside the file. Raises HypernetworkError (see `save_notes`)."""
        save_notes(entry.path, notes)
        annotated = replace(entry, notes=notes)
        with self._lock:
            if self._entries is not None and entry.key in self._entries:
                self._entries[entry.key] = annotated
                self._unsaved += 1
        return annotated

    def look_into_all(self) -> Iterator[tuple[int, int]]:
        """Look into every file; yields (files done, files in all) after each of them."""
        entries = self.entries()
        for number, entry in enumerate(entries, 1):
            self.look_into(entry)
            yield number, len(entries)
        self.save()

    def counts(self) -> Counts:
        """How many files there are and how much is known of them."""
        entries = self.entries()
        looked_into = sum(entry.looked_into for entry in entries)
        return Counts(len(entries), looked_into, sum(entry.problem is not None for entry in entries))

    def search(self, query: str = "", sort: str = SORTS[0], only: str = ALL) -> list[Entry]:
        """The files that hold every word of `query`, in the order `sort`, restricted to `only`.

        Words are looked for, without regard to case, in the path and, for files that were looked into, in the
        name within the file, program, family, architecture, checkpoint and notes. What `sort` and `only` need
        to know counts as unknown for files that were not looked into: use `look_into_all` first.
        """
        words = _folded(query).split()
        entries = [entry for entry in self.entries() if all(word in _text(entry) for word in words)]
        if only == DUPLICATES:
            twins = {entry.key for group in self.duplicates() for entry in group}
            hashes = {entry.key: self.sha256(entry) for entry in entries if entry.key in twins}
            kept = [entry for entry in entries if entry.key in twins]
            return sorted(kept, key=lambda entry: (hashes[entry.key], entry.label))
        return sorted(filter(_FILTERS.get(only, lambda entry: _is_for(entry, only)), entries), key=_order(sort))

    def duplicates(self) -> list[list[Entry]]:
        """Groups of files with the same content, each of two or more.

        Files of the same size are compared by three pieces of 64 KiB, and those that agree by their sha256.
        """
        groups: list[list[Entry]] = [self.entries()]
        for criterion in (lambda entry: str(entry.size), self._sample, self.sha256):
            groups = [part for group in groups for part in _split(group, criterion)]
        return groups

    def twins(self, entry: Entry) -> list[Entry]:
        """The other files with the same content as this one."""
        same: Iterable[Entry] = (one for one in self.entries() if one.key != entry.key and one.size == entry.size)
        return [
            one for one in same if self._sample(one) == self._sample(entry) and self.sha256(one) == self.sha256(entry)
        ]

    def sha256(self, entry: Entry) -> str:
        """sha256 of a file in hex, kept until it changes; a text of its own for one that cannot be read."""
        return self._hash("sha256", entry, lambda file: iter(lambda: file.read(2**20), b""))

    def _sample(self, entry: Entry) -> str:
        def pieces(file: BinaryIO) -> Iterator[bytes]:
            for start in (0, entry.size // 2, max(0, entry.size - _PIECE)):
                file.seek(start)
                yield file.read(_PIECE)

        return self._hash("sample", entry, pieces)

    def _hash(self, kind: str, entry: Entry, pieces: Callable[[BinaryIO], Iterator[bytes]]) -> str:
        stamp = (f"{kind} {entry.key}", *_stamp(entry))
        if stamp not in self._hashes:
            digest = hashlib.sha256()
            try:
                with open_regular(entry.path) as file:
                    for piece in pieces(file):
                        digest.update(piece)
            except OSError:
                return f"unreadable {entry.key}"
            self._hashes[stamp] = digest.hexdigest()
        return self._hashes[stamp]


def _newer(known: Entry | None, found: Entry) -> Entry:
    if known is None or _stamp(known) != _stamp(found) or known.problem is not None:
        return found  # a bad file is looked into again: a composition's missing member may be there now
    return known


def _stamp(entry: Entry) -> tuple[int, int, int]:
    return entry.size, entry.modified, entry.inode


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


_FILTERS: dict[str, Callable[[Entry], bool]] = {
    ALL: lambda entry: True,
    BAD: lambda entry: entry.problem is not None,
    OTHER_WIDTHS: lambda entry: entry.info is not None and bool(entry.info.widths) and not entry.info.families,
}


def _is_for(entry: Entry, family: str) -> bool:
    return entry.info is not None and family in entry.info.families


def _family(entry: Entry) -> tuple[str, ...]:
    """For sorting: files of no family come after those of one."""
    return (entry.info.families if entry.info is not None else ()) or ("~",)


def _order(sort: str) -> Callable[[Entry], tuple[object, ...]]:
    def name(entry: Entry) -> tuple[str, str]:
        return _folded(entry.label), entry.label

    orders: dict[str, Callable[[Entry], tuple[object, ...]]] = {
        "newest": lambda entry: (-entry.modified, *name(entry)),
        "largest": lambda entry: (-entry.size, *name(entry)),
        "most steps": lambda entry: (-((entry.info and entry.info.step) or 0), *name(entry)),
        "model family": lambda entry: (_family(entry), *name(entry)),
    }
    return orders.get(sort, name)
