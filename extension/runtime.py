"""Starting the extension: one object that the seams share, and what happens when."""

from __future__ import annotations

import importlib
import sys
import threading
from dataclasses import dataclass, field

from hnloader.hashes import Hashes, find_by_hash, is_hash
from hnloader.library import Library, LibraryFile
from hnloader.texts import well_formed

from .applying import Applier
from .host import WebuiHost

# Modules beside this one, each with a function `register(extension)`.
SEAMS = ("settings", "infotext", "cards", "xyz", "tab", "api")


@dataclass
class Extension:
    """What the seams to the host share.

    Attributes:
        host: The webui.
        library: The files in the host's folders.
        applier: Applies them to the job that runs.
        hashes: What is known of the files' hashes.
    """

    host: WebuiHost
    library: Library = field(init=False)
    applier: Applier = field(init=False)
    hashes: Hashes = field(init=False, default_factory=Hashes)
    _listing: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)
    _begun: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        self.library = Library(self.host.folders())
        self.applier = Applier(self.host, self.find, self.file_of_hash)

    def list_anew(self) -> Library:
        """Look at the host's folders again, which may be others by now. Gives the library, which it also becomes.

        Of threads that wait for one another, one lists for all whose call came before it began.
        """
        before = self._begun
        with self._listing:
            if self._begun == before:
                self._begun += 1
                library = Library(self.host.folders())
                library.files()
                self.library = library
            return self.library

    def names(self) -> dict[str, str]:
        """Every hypernetwork's name and path, listed anew: what the host adds to its own list."""
        library = self.list_anew()
        return {well_formed(name): str(library.find(name)) for name in library.names()}

    def find(self, name: str) -> str:
        """The path of the file of this name; a file that was added since is found too.

        Raises HypernetworkNotFoundError, with the nearest names.
        """
        return str(self.file(name).path)

    def file(self, name: str) -> LibraryFile:
        """The same as one of the library's files."""
        library = self.library  # another thread may list anew meanwhile
        if not library.matches(name):
            library = self.list_anew()
        return library.first(name)

    def file_of_hash(self, name: str, digest: str) -> LibraryFile | None:
        """The library's file with a hash in an image; None where there is none, or the hash tells nothing.

        The 8 digits of 2022 find it under any name. For a sha256 only files that are called `name` are read.
        """
        found = find_by_hash(self.library, name, digest, self.hashes, everywhere=False)
        if found is None and is_hash(digest):  # added since
            found = find_by_hash(self.list_anew(), name, digest, self.hashes, everywhere=False)
        return found


def start(host: WebuiHost | None = None) -> Extension:
    """Register with the host; called once for each loading of its scripts."""
    from .hosts import detect

    extension = Extension(host or detect())
    restore = []

    def before_ui() -> None:
        extension.host.register_tag(extension.applier.activate_items, extension.applier.deactivate)
        restore.append(extension.host.list_files_with(extension.names))

    def unloaded() -> None:
        extension.applier.deactivate()
        while restore:
            restore.pop()()
        # Another copy may be the one that the host loads next.
        sys.modules.pop(__package__, None)

    extension.host.on_events(before_ui=before_ui, model_loaded=extension.applier.model_changed, unloaded=unloaded)
    extension.host.on_steps(extension.applier.step)
    _register_seams(extension)
    return extension


def _register_seams(extension: Extension) -> None:
    """One that fails, in a host that has changed there, is said and does not stop the others."""
    for seam in SEAMS:
        try:
            importlib.import_module(f".{seam}", __package__).register(extension)
        except Exception as error:
            print(f"[hnloader] Without {seam}: {type(error).__name__}: {error}")
