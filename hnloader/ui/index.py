"""What the library page knows of its files, kept on the disk from one start to the next.

Looking into 10,000 files takes half a minute, reading their index a second. It is a cache and nothing else: an index
that is missing, damaged, cut off, of another version or of something else counts as empty and is written anew, one that
cannot be written is done without, and of two programs the one that writes later wins, whole. What it says of a file
holds as long as the file has the same size, time of change and inode; no file is ever loaded from it.

A line of JSON says what follows, with its sha256; a JSON object follows, `{key: record}`. Only sound weight files are
kept: what is said of a bad file or of a composition can change without the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hnloader._version import __version__
from hnloader.errors import HypernetworkError
from hnloader.files import open_regular, remove_leftovers, replacing
from hnloader.formats.safetensors import decode_value, encode_value
from hnloader.inspection import FileInfo
from hnloader.network import Architecture
from hnloader.texts import takes
from hnloader.ui.catalog_entry import Entry
from hnloader.ui.sidecars import notes_path

# To be raised when records mean something else, or `inspect` says something else of the same file.
VERSION = 1
_KIND = "hnloader library index"
# A hypernetwork's record has 1 kB. What is longer holds text that somebody put there, and is looked into again.
_LONGEST_RECORD = 64_000
_LARGEST_INDEX = 256 << 20
# Attributes of FileInfo that a record holds as they are, and those that JSON makes lists of.
_PLAIN = (
    *("name", "size", "format", "container", "program", "variant"),
    *("step", "checkpoint", "checkpoint_name", "parameters"),
)
_TUPLES = ("widths", "families", "dtypes")


def cache_folder() -> Path | None:
    """`hnloader` where programs of this user keep what they can make again; None where there is no such place."""
    with contextlib.suppress(RuntimeError):  # no home
        if given := os.environ.get("XDG_CACHE_HOME"):
            return Path(given) / "hnloader"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "hnloader" / "cache"
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "hnloader"
    return None


def index_path(cache: Path, folders: Sequence[Path]) -> Path:
    """The index of these folders, in this order, below `cache`."""
    names = "\n".join(str(folder.absolute()) for folder in folders)
    return cache / f"library-{hashlib.sha256(names.encode(errors='surrogatepass')).hexdigest()[:16]}.json"


def read_index(path: Path) -> dict[str, Any]:
    """The records of an index by the keys of their files; none where it is no sound index of this version."""
    try:
        with open_regular(path) as file:
            about = json.loads(file.readline(1000))
            body = file.read(_LARGEST_INDEX)
        if about != _about(body):
            return {}
        records = json.loads(body)
    except (OSError, ValueError, RecursionError, MemoryError):
        return {}
    return records if isinstance(records, dict) else {}


def write_index(path: Path, entries: Iterable[Entry]) -> bool:
    """Write what is known of these files in the place of what stands there; False where that cannot be done."""
    records = {entry.key: record for entry in entries if (record := _record(entry)) is not None}
    body = json.dumps(records, separators=(",", ":")).encode("ascii")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers([path.parent])
        with replacing(path) as temporary:
            temporary.write_bytes(json.dumps(_about(body)).encode("ascii") + b"\n" + body)
    except (HypernetworkError, OSError):
        return False
    return True


def known(record: Any, entry: Entry) -> tuple[FileInfo, str | None] | None:
    """What a record says of this file: `info`, and the notes unless they have changed. None where it says nothing."""
    try:
        if record["stamp"] != [entry.size, entry.modified, entry.inode]:
            return None
        info = _info(record["info"], entry.path)
        notes = record["notes"] if record["notes_stamp"] == _notes_stamp(entry.path) else None
        return (info, notes) if notes is None or isinstance(notes, str) else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _about(body: bytes) -> dict[str, object]:
    digest = hashlib.sha256(body).hexdigest()
    return {"kind": _KIND, "version": VERSION, "hnloader": __version__, "bytes": len(body), "sha256": digest}


def _record(entry: Entry) -> dict[str, Any] | None:
    """What is kept of a file; None for what is not."""
    info = entry.info
    if info is None or info.architecture is None:
        return None
    told: dict[str, Any] = {name: getattr(info, name) for name in (*_PLAIN, *_TUPLES)}
    if not takes([told, info.metadata, entry.notes], _LONGEST_RECORD):  # before anything of that length is made
        return None
    with contextlib.suppress(
        HypernetworkError, RecursionError, ValueError
    ):  # metadata of a kind that cannot be written
        told["metadata"] = encode_value(info.metadata)
        told["architecture"] = encode_value(vars(info.architecture))
        record = {
            "stamp": [entry.size, entry.modified, entry.inode],
            "notes_stamp": _notes_stamp(entry.path),
            "notes": entry.notes,
            "info": told,
        }
        return record if len(json.dumps(record)) <= _LONGEST_RECORD else None
    return None


def _info(told: dict[str, Any], path: Path) -> FileInfo:
    given = {name: told[name] for name in _PLAIN} | {name: tuple(told[name]) for name in _TUPLES}
    architecture = Architecture(**decode_value(told["architecture"]))
    metadata = decode_value(told["metadata"])
    if not isinstance(metadata, dict):
        raise TypeError("the metadata are no mapping")
    return FileInfo(path=path, architecture=architecture, metadata=metadata, **given)


def _notes_stamp(path: Path) -> list[int] | None:
    """Size and time of change of the file that holds the notes; None where there is none."""
    try:
        status = notes_path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
