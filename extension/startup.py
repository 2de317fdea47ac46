"""Start the extension: connect it to the webui, then add each part that the webui has a place for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial

from .core import Extension
from .hosts import detect, protocol
from .hosts.protocol import Events, ListsFiles, ShowsCards, WebuiHost

# Modules of this package with a function `register(extension, host)`, and the capability that each one requires.
PARTS: dict[str, type] = {
    "options": protocol.HasOptions,
    "paste": protocol.WritesInfotext,
    "panel": protocol.ShowsPanel,
    "xyz": protocol.PlotsAxes,
    "tab": protocol.ShowsTab,
    "api": protocol.ServesApi,
}


def start(host: WebuiHost | None = None) -> Extension:
    """Connect to the running webui. Entry scripts call this once each time that the webui loads its scripts.

    Raises:
        TypeError: The host lacks a member of a protocol that it names as a base class.
    """
    host = host or detect()
    _check(type(host))
    extension = Extension(host)
    applier = extension.applier

    def unload() -> None:
        applier.deactivate()
        # Another copy of the extension may load next.
        sys.modules.pop(__package__, None)

    host.connect(Events(applier.activate, applier.deactivate, applier.step, applier.model_changed, unload))
    if isinstance(host, ListsFiles):
        _attempt("the file list", partial(host.list_files, extension.library.names))
    if isinstance(host, ShowsCards):
        _attempt("cards", partial(host.add_cards, extension.library))
    for part, capability in PARTS.items():
        if isinstance(host, capability):
            _attempt(part, partial(_register, part, extension))
    return extension


def _check(host: type) -> None:
    """Raise TypeError if the host lacks a member of a protocol, whose empty method would run instead."""
    for base in host.__mro__:
        if base.__module__ != protocol.__name__:
            continue
        for name in [*vars(base), *base.__annotations__]:
            # `base` stands for a member that is missing.
            if not name.startswith("_") and getattr(host, name, base) is vars(base).get(name, base):
                raise TypeError(f"{host.__name__} names {base.__name__} but lacks {name}.")


def _register(part: str, extension: Extension) -> None:
    importlib.import_module(f".{part}", __package__).register(extension, extension.host)


def _attempt(part: str, register: Callable[[], None]) -> None:
    """Report a part that fails, for example after the webui changed, and keep the others."""
    try:
        register()
    except Exception as error:
        print(f"[hnloader] Could not add {part}: {type(error).__name__}: {error}")
