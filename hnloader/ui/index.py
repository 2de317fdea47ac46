"""The library's index: inspected files, kept on disk until the next start.

Inspecting 10,000 files takes half a minute, reading their index a second. The index is only a cache. One that is
missing, damaged or of another version counts as empty and is written again; a folder that is not writable keeps none.
A record is valid while the file's size, time and inode are unchanged.

The first line is JSON with the version and the sha256 of the rest, a JSON object `{key: record}`. It holds only sound
weight files: the state of other files can change without the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hnloader import __version__
from hnloader.errors import HypernetworkError
from hnloader.files import open_regular, remove_leftovers, replacing
from hnloader.formats.safetensors import decode_value, encode_value
from hnloader.inspection import FileInfo
from hnloader.network import Architecture
from hnloader.texts import takes
from hnloader.ui.catalog_entry import Entry
from hnloader.ui.sidecars import notes_path, read_notes

__all__ = ["VERSION", "cache_folder", "index_path", "read_entry", "read_index", "write_index"]

# Raise it when records mean something else, or `inspect` reports something else for the same file.
VERSION = 2
_KIND = "hnloader library index"
# A record takes about 1 kB. A longer one holds someone's text; its file is inspected again instead.
_LONGEST_RECORD = 64_000
_LARGEST_INDEX = 256 << 20
# Attributes of FileInfo: those stored unchanged, and those that JSON turns into lists.
_PLAIN = (
    *("name", "size", "format", "container", "program", "variant"),
    *("step", "checkpoint", "checkpoint_name", "parameters"),
)
_TUPLES = ("widths", "scopes", "families", "dtypes")


def cache_folder() -> Path | None:
    """Return hnloader's folder in the user's cache, or None for a user without a home."""
    with contextlib.suppress(RuntimeError):  # no home
        if given := os.environ.get("XDG_CACHE_HOME"):
            return Path(given) / "hnloader"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "hnloader" / "cache"
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "hnloader"
    return None


def index_path(cache: Path, folders: Sequence[Path]) -> Path:
    """Return the index file of these folders in this order."""
    names = "\n".join(str(folder.absolute()) for folder in folders)
    return cache / f"library-{hashlib.sha256(names.encode(errors='surrogatepass')).hexdigest()[:16]}.json"


def read_index(path: Path) -> dict[str, Any]:
    """Return an index's records by key, empty if it is missing, damaged or of another version."""
    try:
        with open_regular(path) as file:
            head = json.loads(file.readline(1000))
            body = file.read(_LARGEST_INDEX)
        records = json.loads(body) if head == _head(body) else None
    except (OSError, ValueError, RecursionError, MemoryError):
        return {}
    return records if isinstance(records, dict) else {}


def write_index(path: Path, entries: Iterable[Entry]) -> None:
    """Replace an index, if its folder is writable."""
    records = {entry.key: record for entry in entries if (record := _record(entry)) is not None}
    body = json.dumps(records, separators=(",", ":")).encode("ascii")
    with contextlib.suppress(HypernetworkError, OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers([path.parent])
        with replacing(path) as temporary:
            temporary.write_bytes(json.dumps(_head(body)).encode("ascii") + b"\n" + body)


def read_entry(record: Any, entry: Entry) -> Entry:
    """Return the entry with the record's contents if the record is sound and the file unchanged."""
    try:
        if record["stamp"] != list(entry.stamp):
            return entry
        info = _info(record["info"], entry.path)
        notes = record["notes"] if record["notes_stamp"] == _notes_stamp(entry.path) else read_notes(entry.path)
    except (KeyError, TypeError, ValueError, AttributeError):
        return entry
    return replace(entry, info=info, notes=notes) if isinstance(notes, str) else entry


def _head(body: bytes) -> dict[str, object]:
    digest = hashlib.sha256(body).hexdigest()
    return {"kind": _KIND, "version": VERSION, "hnloader": __version__, "bytes": len(body), "sha256": digest}


def _record(entry: Entry) -> dict[str, Any] | None:
    """Return what to keep of a file, or None to keep nothing."""
    info = entry.info
    if info is None or info.architecture is None:
        return None
    kept: dict[str, Any] = {name: getattr(info, name) for name in (*_PLAIN, *_TUPLES)}
    if not takes([kept, info.metadata, entry.notes], _LONGEST_RECORD):  # checked before building long texts
        return None
    with contextlib.suppress(HypernetworkError, RecursionError, ValueError):  # metadata that JSON cannot hold
        kept["metadata"] = encode_value(info.metadata)
        kept["architecture"] = encode_value(vars(info.architecture))
        stamps = {"stamp": list(entry.stamp), "notes_stamp": _notes_stamp(entry.path)}
        record = {**stamps, "notes": entry.notes, "info": kept}
        return record if len(json.dumps(record)) <= _LONGEST_RECORD else None
    return None


def _info(kept: dict[str, Any], path: Path) -> FileInfo:
    values = {name: kept[name] for name in _PLAIN} | {name: tuple(kept[name]) for name in _TUPLES}
    metadata = decode_value(kept["metadata"])
    if not isinstance(metadata, dict):
        raise TypeError(f"Metadata: expected an object, got {type(metadata).__name__}.")
    architecture = Architecture(**decode_value(kept["architecture"]))
    return FileInfo(path=path, architecture=architecture, metadata=metadata, **values)


def _notes_stamp(path: Path) -> list[int] | None:
    """Return size and time of the file with the notes, or None without one."""
    try:
        status = notes_path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
