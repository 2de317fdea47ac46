"""The webuis that the extension runs in, one folder each. docs/dev/new-host.md shows how to add one.

A folder's `__init__.py` has `MARKERS`, top-level modules that tell its webui from others, and `make`, which returns the
`WebuiHost`. It imports nothing of the webui before `make` is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys

from .protocol import WebuiHost


def detect() -> WebuiHost:
    """Return the host of this process: of the folders whose markers all exist, the one with the most.

    Raises:
        RuntimeError: No folder's markers exist.
    """
    names = [found.name for found in pkgutil.iter_modules(__path__) if found.ispkg]
    folders = {name: importlib.import_module(f".{name}", __name__) for name in names}
    known = [folder for folder in folders.values() if all(map(_exists, folder.MARKERS))]
    if not known:
        raise RuntimeError(f"Found no supported webui. Install the extension in one of: {', '.join(folders)}.")
    host: WebuiHost = max(known, key=lambda folder: len(folder.MARKERS)).make()
    return host


def _exists(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None
