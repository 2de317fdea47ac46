"""The webui's list of hypernetworks, or the extension's where the webui has none."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from modules import paths, script_callbacks, shared

from hnloader.texts import well_formed


class Listing(Protocol):
    """The folder and the list that belong to the webui."""

    @property
    def folder(self) -> Path:
        """The webui's folder of hypernetworks."""

    def include(self, names: Callable[[], Mapping[str, str]]) -> None:
        """Include these names and paths until the extension is unloaded."""

    def refresh(self) -> None:
        """Update the list."""

    def names(self) -> list[str]:
        """Return the names in the list."""


def listing() -> Listing:
    """Return the list of this webui."""
    return OwnListing() if importlib.util.find_spec("modules.hypernetworks") is None else BuiltInListing()


class BuiltInListing:
    """The list of `modules.hypernetworks`."""

    @property
    def folder(self) -> Path:
        return Path(shared.cmd_opts.hypernetwork_dir)

    def include(self, names: Callable[[], Mapping[str, str]]) -> None:
        """Replace the function that makes the list."""
        from modules.hypernetworks import hypernetwork

        original = hypernetwork.list_hypernetworks

        def list_hypernetworks(path: str) -> dict[str, str]:
            return _sendable({**original(path), **names()})

        def replace() -> None:
            hypernetwork.list_hypernetworks = list_hypernetworks
            shared.reload_hypernetworks()

        def restore() -> None:
            if hypernetwork.list_hypernetworks is list_hypernetworks:
                hypernetwork.list_hypernetworks = original

        script_callbacks.on_before_ui(replace)
        script_callbacks.on_script_unloaded(restore)

    def refresh(self) -> None:
        shared.reload_hypernetworks()

    def names(self) -> list[str]:
        return list(shared.hypernetworks)


class OwnListing:
    """A list for webuis without hypernetworks, such as Forge Classic."""

    def __init__(self) -> None:
        self.folder = Path(paths.models_path) / "hypernetworks"
        with contextlib.suppress(OSError):  # models on a read-only disk
            self.folder.mkdir(parents=True, exist_ok=True)
        self._names: Callable[[], Mapping[str, str]] = dict

    def include(self, names: Callable[[], Mapping[str, str]]) -> None:
        self._names = names

    def refresh(self) -> None:
        """Do nothing: `names` lists the folders."""

    def names(self) -> list[str]:
        return list(_sendable(self._names()))


def _sendable(found: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is not UTF-8, which neither the page nor the API can send."""
    return {name: path for name, path in found.items() if well_formed(name + path) == name + path}
