"""Start the extension: connect it to the webui, then add each part that the webui has a place for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial

from .core import Extension
from .hosts import detect
from .hosts.protocol import Events, ListsFiles, ShowsCards, WebuiHost

# Modules of this package, each with a function `register(extension)` that does nothing for a host without its place.
PARTS = ("options", "paste", "panel", "xyz", "tab", "api")


def start(host: WebuiHost | None = None) -> Extension:
    """Connect to the running webui. Entry scripts call this once each time that the webui loads its scripts."""
    extension = Extension(host or detect())
    applier = extension.applier

    def unload() -> None:
        applier.deactivate()
        # Another copy of the extension may load next.
        sys.modules.pop(__package__, None)

    events = Events(applier.activate, applier.deactivate, applier.step, applier.model_changed, unload)
    extension.host.connect(events)
    _attempt("the file list", partial(_list_files, extension))
    _attempt("cards", partial(_add_cards, extension))
    for part in PARTS:
        _attempt(part, partial(_register, part, extension))
    return extension


def _attempt(part: str, register: Callable[[], None]) -> None:
    """Report a part that fails, for example after the webui changed, and keep the others."""
    try:
        register()
    except Exception as error:
        print(f"[hnloader] Could not add {part}: {type(error).__name__}: {error}")


def _register(part: str, extension: Extension) -> None:
    importlib.import_module(f".{part}", __package__).register(extension)


def _list_files(extension: Extension) -> None:
    if isinstance(extension.host, ListsFiles):
        extension.host.list_files(extension.library.names)


def _add_cards(extension: Extension) -> None:
    if isinstance(extension.host, ShowsCards):
        extension.host.add_cards(extension.library)
