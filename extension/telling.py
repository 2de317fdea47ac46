"""What is told about files to whoever sees images and cards or asks the API: never where the computer keeps them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import hnloader
from hnloader.errors import HypernetworkError
from hnloader.inspection import FileInfo
from hnloader.texts import as_text, shown, well_formed

from .host import WebuiHost

_LONGEST = 2_000  # characters of a message


def without_folders(host: WebuiHost, text: str) -> str:
    """`text` with files named by their path below the host's folders, and nothing in it that is not UTF-8.

    The longest folder goes first, as one may lie in another.
    """
    for folder in sorted(map(str, host.folders()), key=len, reverse=True):
        text = text.replace(folder.rstrip(os.sep) + os.sep, "").replace(folder, Path(folder).name)
    return well_formed(text)


def said(host: WebuiHost, error: Exception) -> str:
    """A message of ours, or of the system without the path."""
    text = error if isinstance(error, (HypernetworkError, OSError)) else type(error).__name__
    return without_folders(host, as_text(text, _LONGEST))


def looked_into(host: WebuiHost, path: Path) -> FileInfo | str:
    """What a file's header says, or why it cannot be used."""
    try:
        return hnloader.inspect(path, host.folders())
    except (HypernetworkError, OSError) as error:
        return said(host, error)


def values_of(host: WebuiHost, info: FileInfo) -> dict[str, Any]:
    """The same as `hnloader inspect --json` gives, without hashes, which take reading the whole file."""
    told: dict[str, Any] = _told(host, info.to_dict(hashes=False))
    return told


def _told(host: WebuiHost, value: Any) -> Any:
    """Plain values without the folders' paths; JSON has no infinite numbers."""
    if isinstance(value, str):
        return without_folders(host, value)
    if isinstance(value, dict):
        return {without_folders(host, as_text(key, _LONGEST)): _told(host, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_told(host, part) for part in value]
    return shown(value) if isinstance(value, float) and not math.isfinite(value) else value
