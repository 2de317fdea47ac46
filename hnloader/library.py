"""Finding hypernetwork files by name in folders, as the webuis do.

A name is a file's stem (`ink`), its file name (`ink.pt`), or either with the subfolders that it lies in
(`sketches/ink`). `./ink.pt` is the file of that path below a folder and no other.
Where several files answer to a name, `Library.find` takes the first by this order:

1. written exactly as asked, before one that differs in how its characters are composed or in slashes, and that
   before one that differs in upper and lower case
2. the folder that was given first
3. the fewest subfolders
4. `.safetensors`, then `.pt`, then `.hns` (the rank of the format)
5. alphabetical order of the path
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from hnloader.errors import HypernetworkNotFoundError
from hnloader.folders import walk
from hnloader.formats.registry import suffixes as known_suffixes
from hnloader.texts import shown, well_formed

# What begins a name that is a whole path below a folder.
_WHOLE = "./"
_LONGEST_NAME = 255  # of a file, in any file system


@dataclass(frozen=True)
class LibraryFile:
    """One hypernetwork file: the folder that was searched and the file's path below it."""

    folder: Path
    relative: PurePath

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.folder / self.relative

    @property
    def name(self) -> str:
        """What a prompt calls it where that is unambiguous: the stem, e.g. `ink` for `sketches/ink.pt`."""
        return self.relative.stem


class Library:
    """The hypernetwork files below some folders, listed once, at the first question; `refresh` lists anew.

    `suffixes` are endings of other files to list, those that win first.

    Symbolic links are followed, each folder being entered once however often links lead to it. Folders that
    are missing or not readable count as empty. File contents are never read. Every method may be called from
    several threads.
    """

    def __init__(self, folders: Iterable[str | os.PathLike[str]], suffixes: Sequence[str] = ()) -> None:
        self._suffixes = tuple(suffixes) or known_suffixes()
        self.folders = tuple(dict.fromkeys(Path(folder) for folder in folders))
        self._listing: _Listing | None = None

    def refresh(self) -> None:
        """Forget what was listed; the next question looks at the folders again."""
        self._listing = None

    def files(self) -> list[LibraryFile]:
        """All files, in the order in which they win (the order above, without its first rule)."""
        return list(self._listed().files)

    def _listed(self) -> _Listing:
        listing = self._listing  # looked at once: another thread may list anew meanwhile
        if listing is None:
            listing = self._listing = _list(self.folders, self._suffixes)
        return listing

    def names(self) -> list[str]:
        """The names that `find` knows files by, each once, alphabetical and without regard to case."""
        return sorted({file.name for file in self.files()}, key=lambda name: (name.casefold(), name))

    def matches(self, name: str) -> list[LibraryFile]:
        """Every file that answers to `name`, the one that `find` takes first.

        Spaces around a name matter only where files differ in them.
        """
        given = name.removeprefix(_WHOLE) if (is_path := name.startswith(_WHOLE)) else name
        found = self._listed().by_key.get(_folded(given).strip(), [])
        if is_path:
            found = [file for file in found if _folded(file.relative.as_posix()) == _folded(given)]
        wanted = _normal(given)

        def rank(file: LibraryFile) -> tuple[bool, bool, bool, bool]:
            names = _names(file)
            return (
                given not in (written := _written(file)),
                given.strip() not in written,
                wanted not in names,
                wanted.strip() not in names,
            )

        return sorted(found, key=rank)  # stable: the order within stays

    def find(self, name: str) -> Path:
        """The file that `name` stands for. Only files below the folders are found: `..` matches nothing.

        Raises HypernetworkNotFoundError, with the folders searched and the nearest names there are.
        """
        return self.first(name).path

    def first(self, name: str) -> LibraryFile:
        """The same as one of `files`."""
        found = self.matches(name)
        if not found:
            raise HypernetworkNotFoundError(self._not_found(name))
        return found[0]

    def name_of(self, path: str | os.PathLike[str]) -> str:
        """The shortest name by which `find` finds this file: `ink`, `sketches/ink` or `sketches/ink.pt`.

        Raises HypernetworkNotFoundError for a file that is not in the folders.
        """
        wanted = Path(path)
        file = next((file for file in self.files() if file.path == wanted), None)
        if file is None:
            raise HypernetworkNotFoundError(f"{wanted} is not in {self._searched()}.")
        return self.shortest_name(file)

    def shortest_name(self, file: LibraryFile) -> str:
        """The same for one of `files`."""
        names = self.names_of(file)
        return next(names, file.relative.as_posix())

    def names_of(self, file: LibraryFile) -> Iterator[str]:
        """Return the names by which `find` finds one of `files`, the shortest first."""
        whole = file.relative.as_posix()
        names = (file.name, whole[: -len(file.relative.suffix)], whole, _WHOLE + whole)
        return (name for name in names if self.matches(name)[:1] == [file])

    def suggestions(self, name: str) -> list[str]:
        """Up to three names near to `name`, the nearest first."""
        wanted = _folded(name).rpartition("/")[2]
        if len(wanted) > _LONGEST_NAME:  # comparing takes quadratic time
            return []
        by_folded = {_folded(known): known for known in self.names()}
        near = difflib.get_close_matches(wanted, by_folded, n=3, cutoff=0.6)
        near += [folded for folded in by_folded if wanted and wanted in folded and folded not in near]
        return [by_folded[folded] for folded in near[:3]]

    def _not_found(self, name: str) -> str:
        parts = PurePath(name.replace("\\", "/")).parts
        if ".." in parts or PurePath(name).is_absolute() or ":" in name[1:3]:
            return f"{shown(name)} is a path; hypernetworks are found by name, and only below {self._searched()}."
        message = f"No hypernetwork is called {shown(name)}."
        near = self.suggestions(name)
        if near:
            message += f" Did you mean {' or '.join(map(shown, near))}?"
        return f"{message} Searched {self._searched()}."

    def _searched(self) -> str:
        if not self.folders:
            return "no folder (none was given)"
        counts: dict[Path, int] = dict.fromkeys(self.folders, 0)
        for file in self.files():
            counts[file.folder] += 1
        return ", ".join(
            f"{folder} ({_counted(counts[folder])})" if folder.is_dir() else f"{folder} (no such folder)"
            for folder in self.folders
        )


@dataclass(frozen=True)
class _Listing:
    """What was found: `files` in the order in which they win, and by each of their names, folded."""

    files: list[LibraryFile]
    by_key: dict[str, list[LibraryFile]]


def _list(folders: Iterable[Path], suffixes: Sequence[str]) -> _Listing:
    files = [file for folder in folders for file in _sorted(folder, suffixes)]
    by_key = defaultdict(list)
    for file in files:
        for name in {_folded(name).strip() for name in _names(file)}:
            by_key[name].append(file)
    return _Listing(files, dict(by_key))


def _counted(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"


def _sorted(folder: Path, suffixes: Sequence[str]) -> list[LibraryFile]:
    def order(file: LibraryFile) -> tuple[int, int, str]:
        relative = file.relative
        return len(relative.parts), suffixes.index(relative.suffix.lower()), relative.as_posix()

    return sorted((LibraryFile(folder, path) for path in _scan(folder, suffixes)), key=order)


def _scan(folder: Path, suffixes: Sequence[str]) -> Iterator[PurePath]:
    """The files of these kinds below a folder, relative to it, in no order."""
    for entry in walk(folder):
        if entry.kind == "file" and entry.relative.suffix.lower() in suffixes:
            yield entry.relative


def _written(file: LibraryFile) -> list[str]:
    """`a/b/ink.pt` answers to ink, ink.pt, b/ink, b/ink.pt, a/b/ink and a/b/ink.pt."""
    full, stem = file.relative.parts, (*file.relative.parts[:-1], file.name)
    return ["/".join(parts[start:]) for parts in (full, stem) for start in range(len(parts))]


def _names(file: LibraryFile) -> list[str]:
    return list(map(_normal, _written(file)))


def _normal(name: str) -> str:
    """One spelling for what looks the same: composed Unicode (macOS decomposes it), slashes forward.

    What is not UTF-8 in a name is its escape, as pages and the API show it.
    """
    return unicodedata.normalize("NFC", well_formed(name).replace("\\", "/"))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _normal(name).casefold())
