"""The hypernetworks in a webui's folders, kept up to date while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from hnloader.hashes import Hashes, find_by_hash, is_hash
from hnloader.infotext import without_hash
from hnloader.library import Library, LibraryFile
from hnloader.texts import well_formed
from hnloader.ui.catalog import Catalog
from hnloader.ui.index import cache_folder


class HostLibrary:
    """Finds files by name and hash. It lists the folders again where a file is new, moved or deleted.

    Args:
        folders: Called before each listing, since settings can change the folders.

    Attributes:
        catalog: The contents of the files.
    """

    def __init__(self, folders: Callable[[], list[Path]]) -> None:
        self.folders = folders
        self.hashes = Hashes()
        self.catalog = Catalog(folders, cache_folder())
        self.current = Library(folders())
        self._listing = threading.Lock()
        self._begun = 0

    def refresh(self) -> Library:
        """List the folders again and return the library, which becomes `current`.

        When several threads wait, one of them lists for all whose call came before it began.
        """
        before = self._begun
        with self._listing:
            if self._begun == before:
                self._begun += 1
                library = Library(self.folders())
                library.files()
                self.current = library
            return self.current

    def names(self) -> dict[str, str]:
        """List the folders again and return each name and path."""
        library = self.refresh()
        return {well_formed(name): str(library.find(name)) for name in library.names()}

    def find(self, name: str) -> LibraryFile:
        """Return the file with this name. Raises HypernetworkNotFoundError with the nearest names."""
        return self._containing(name).first(name)

    def find_tagged(self, name: str) -> LibraryFile:
        """Return the file that a tag names, also with a hash as in images of 2022: `ink(3fa2c1d0)`.

        The file with that hash wins over one with that name. Raises HypernetworkNotFoundError.
        """
        plain, digest = without_hash(name)
        if plain == name or self._containing(name).matches(name):
            return self.find(name)
        return self.find_by_hash(plain, digest) or self.find(plain)

    def find_by_hash(self, name: str, digest: str) -> LibraryFile | None:
        """Return the file with a hash from an image; None if the hash is unknown or identifies nothing.

        8 digits, as in 2022, find a file under any name. For a sha256, only files called `name` are read.
        """
        found = find_by_hash(self.current, name, digest, self.hashes, everywhere=False)
        if found is None and is_hash(digest):
            found = find_by_hash(self.refresh(), name, digest, self.hashes, everywhere=False)
        return found

    def _containing(self, name: str) -> Library:
        library = self.current  # another thread may replace it
        found = library.matches(name)
        return library if found and all(file.path.exists() for file in found) else self.refresh()
