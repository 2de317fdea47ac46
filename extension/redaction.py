"""Text and values about files without the folders of this computer, for images, cards and clients of the API."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hnloader
from hnloader.errors import HypernetworkError
from hnloader.inspection import FileInfo
from hnloader.texts import as_text, shown, well_formed, without_folders

_LONGEST = 2_000  # characters of a message


def redact(folders: Iterable[Path], text: str) -> str:
    """Shorten paths of files to their part below the webui's folders, and escape text that is not UTF-8."""
    return well_formed(without_folders(text, folders))


def redacted_message(folders: Iterable[Path], error: Exception) -> str:
    """Return the message of an error of hnloader or of the system; of other errors only the type."""
    text = error if isinstance(error, (HypernetworkError, OSError)) else type(error).__name__
    return redact(folders, as_text(text, _LONGEST))


def inspect_redacted(folders: Sequence[Path], path: Path) -> FileInfo | str:
    """Inspect a file; return the message of an error that it has."""
    try:
        return hnloader.inspect(path, folders)
    except (HypernetworkError, OSError) as error:
        return redacted_message(folders, error)


def redacted_values(folders: Sequence[Path], info: FileInfo) -> dict[str, Any]:
    """Return what `hnloader inspect --json` prints, but no hashes, which would take reading the whole file."""
    values: dict[str, Any] = _redacted(folders, info.to_dict(hashes=False))
    return values


def _redacted(folders: Sequence[Path], value: Any) -> Any:
    """Redact plain values; replace infinite numbers, which JSON lacks, by text."""
    if isinstance(value, str):
        return redact(folders, value)
    if isinstance(value, dict):
        return {redact(folders, as_text(key, _LONGEST)): _redacted(folders, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(folders, part) for part in value]
    return shown(value) if isinstance(value, float) and not math.isfinite(value) else value
