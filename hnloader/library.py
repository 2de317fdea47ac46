"""Find hypernetwork files by name in folders, as the webuis do.

A name is a file's stem (`ink`), its file name (`ink.pt`), or either with its subfolders (`sketches/ink`). `./ink.pt` is
the path below a folder and matches only that file. If several files match a name, `Library.find` prefers:

1. the exact spelling, then other forms of Unicode and slashes, then other upper and lower case
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from hnloader.errors import HypernetworkNotFoundError
from hnloader.folders import walk
from hnloader.formats.registry import suffixes as known_suffixes
from hnloader.texts import shown, well_formed
from hnloader.units import counted

__all__ = ["Library", "LibraryFile"]

# Start of a name that is a whole path below a folder.
_WHOLE = "./"
_LONGEST_NAME = 255  # longest file name of any file system


@dataclass(frozen=True)
class LibraryFile:
    """A hypernetwork file in a library.

    Args:
        folder: Folder of the library.
        relative: Path of the file below the folder.

    Example:
        >>> from pathlib import Path, PurePath
        >>> from hnloader.library import LibraryFile
        >>> LibraryFile(Path("styles"), PurePath("sketches/ink.pt")).name
        'ink'
    """

    folder: Path
    relative: PurePath

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / self.relative

    @property
    def name(self) -> str:
        """The stem, such as `ink` for `sketches/ink.pt`."""
        return self.relative.stem


class Library:
    """The hypernetwork files below some folders.

    The first lookup lists the folders and `refresh` forgets the list. Links are followed, and each folder is entered
    once. Missing and unreadable folders count as empty. Only `accepts` opens files. All methods are safe in several
    threads.

    Args:
        folders: The folders, the preferred one first.
        suffixes: Suffixes of the files, the preferred one first. Default: those of hypernetworks.
        hint: Sentence at the end of errors about unknown names, such as how to add a folder. Default: empty.
        accepts: Returns whether a file with one of the suffixes counts. Default: every file does.

    Example:
        >>> from hnloader.demo import hypernetwork_paths
        >>> from hnloader.library import Library
        >>> library = Library([hypernetwork_paths()["outline"].parent])
        >>> library.names()
        ['halftone', 'outline']
        >>> library.find("outline").name
        'outline.pt'
    """

    def __init__(
        self,
        folders: Iterable[str | os.PathLike[str]],
        suffixes: Sequence[str] = (),
        hint: str = "",
        accepts: Callable[[Path], bool] = lambda path: True,
    ) -> None:
        self._hint, self._accepts = hint, accepts
        self._suffixes = tuple(suffixes) or known_suffixes()
        self.folders = tuple(dict.fromkeys(Path(folder) for folder in folders))
        self._listing: _Listing | None = None

    def refresh(self) -> None:
        """Forget the list; the next lookup lists the folders again."""
        self._listing = None

    def files(self) -> list[LibraryFile]:
        """Return all files.

        Returns:
            The files, the preferred one first.
        """
        return list(self._listed().files)

    def _listed(self) -> _Listing:
        listing = self._listing  # read once, because another thread may refresh
        if listing is None:
            listing = self._listing = _list(self.folders, self._suffixes, self._accepts)
        return listing

    def names(self) -> list[str]:
        """Return the stems of all files.

        Returns:
            Each stem once, in alphabetical order without regard to case.
        """
        return sorted({file.name for file in self.files()}, key=lambda name: (name.casefold(), name))

    def matches(self, name: str) -> list[LibraryFile]:
        """Return all files that match a name.

        Args:
            name: The name. Spaces around it matter only if files differ in them.

        Returns:
            The files, the preferred one first.
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

        return sorted(found, key=rank)  # stable

    def find(self, name: str) -> Path:
        """Return the path of the preferred file with a name.

        Args:
            name: The name. Only files below the folders match: `..` matches nothing.

        Returns:
            Path of the file.

        Raises:
            HypernetworkNotFoundError: The name is unknown. The message lists the folders and similar names.
        """
        return self.first(name).path

    def first(self, name: str) -> LibraryFile:
        """Return the preferred file with a name.

        Args:
            name: The name, as for `find`.

        Returns:
            The file.

        Raises:
            HypernetworkNotFoundError: The name is unknown.
        """
        found = self.matches(name)
        if not found:
            raise HypernetworkNotFoundError(self._not_found(name))
        return found[0]

    def name_of(self, path: str | os.PathLike[str]) -> str:
        """Return the shortest name by which `find` returns a file.

        Args:
            path: Path of the file.

        Returns:
            A name such as `ink`, `sketches/ink` or `sketches/ink.pt`.

        Raises:
            HypernetworkNotFoundError: The file is outside the folders.
        """
        wanted = Path(path)
        file = next((file for file in self.files() if file.path == wanted), None)
        if file is None:
            raise HypernetworkNotFoundError(
                f"{wanted}: the file is outside the library. Move it into one of {self._searched()}."
            )
        return self.shortest_name(file)

    def shortest_name(self, file: LibraryFile) -> str:
        """Return the shortest name by which `find` returns a file.

        Args:
            file: A file of the library.

        Returns:
            The name, as from `name_of`.
        """
        names = self.names_of(file)
        return next(names, file.relative.as_posix())

    def names_of(self, file: LibraryFile) -> Iterator[str]:
        """Return the names by which `find` returns a file.

        Args:
            file: A file of the library.

        Returns:
            An iterator of the names, the shortest first.
        """
        whole = file.relative.as_posix()
        names = (file.name, whole[: -len(file.relative.suffix)], whole, _WHOLE + whole)
        return (name for name in names if self.matches(name)[:1] == [file])

    def suggestions(self, name: str) -> list[str]:
        """Return similar names.

        Args:
            name: A name.

        Returns:
            Up to three names of files, the most similar first.
        """
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
            return f"{shown(name)}: found a path. Use the name of a file below {self._searched()}. {self._hint}".strip()
        near = " or ".join(map(shown, self.suggestions(name)))
        hint = f"Did you mean {near}?" if near else "Check the name."
        return f"Hypernetwork {shown(name)}: found no such file in {self._searched()}. {hint} {self._hint}".strip()

    def _searched(self) -> str:
        if not self.folders:
            return "an empty list of folders"
        counts: dict[Path, int] = dict.fromkeys(self.folders, 0)
        for file in self.files():
            counts[file.folder] += 1
        return ", ".join(
            f"{folder} ({counted(counts[folder], 'file')})" if folder.is_dir() else f"{folder} (missing folder)"
            for folder in self.folders
        )


@dataclass(frozen=True)
class _Listing:
    """The files in their order, and by each of their normalized names."""

    files: list[LibraryFile]
    by_key: dict[str, list[LibraryFile]]


def _list(folders: Iterable[Path], suffixes: Sequence[str], accepts: Callable[[Path], bool]) -> _Listing:
    files = [file for folder in folders for file in _sorted(folder, suffixes) if accepts(file.path)]
    by_key = defaultdict(list)
    for file in files:
        for name in {_folded(name).strip() for name in _names(file)}:
            by_key[name].append(file)
    return _Listing(files, dict(by_key))


def _sorted(folder: Path, suffixes: Sequence[str]) -> list[LibraryFile]:
    def order(file: LibraryFile) -> tuple[int, int, str]:
        relative = file.relative
        return len(relative.parts), suffixes.index(relative.suffix.lower()), relative.as_posix()

    return sorted((LibraryFile(folder, path) for path in _scan(folder, suffixes)), key=order)


def _scan(folder: Path, suffixes: Sequence[str]) -> Iterator[PurePath]:
    """Yield the files with these suffixes below a folder, relative to it."""
    for entry in walk(folder):
        if entry.kind == "file" and entry.relative.suffix.lower() in suffixes:
            yield entry.relative


def _written(file: LibraryFile) -> list[str]:
    """Return the names of a file: ink, ink.pt, b/ink, b/ink.pt, a/b/ink and a/b/ink.pt for `a/b/ink.pt`."""
    full, stem = file.relative.parts, (*file.relative.parts[:-1], file.name)
    return ["/".join(parts[start:]) for parts in (full, stem) for start in range(len(parts))]


def _names(file: LibraryFile) -> list[str]:
    return list(map(_normal, _written(file)))


def _normal(name: str) -> str:
    """Return one spelling: composed Unicode (macOS decomposes it), forward slashes, escapes for non-UTF-8."""
    return unicodedata.normalize("NFC", well_formed(name).replace("\\", "/"))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", _normal(name).casefold())
