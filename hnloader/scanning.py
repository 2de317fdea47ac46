"""What a file from a stranger would do if it were unpickled, found without unpickling it.

`scan` gives a verdict for any file. Every pickle in it (a bare one, several in a row, those of a zip archive or of a
legacy torch stream) is read symbolically by `formats.pickles`; whatever it names that no hypernetwork needs is a
`Finding`. This is an allow-list: a callable need not be known as dangerous to be found.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hnloader.errors import (
    HypernetworkError,
    UnknownFormatError,
    UnsafeFileError,
    UnsupportedArchitectureError,
)
from hnloader.folders import walk
from hnloader.formats import hns
from hnloader.formats.checkpoint import MAX_MEMBERS, ZIP_MAGIC, Directory, is_legacy_stream
from hnloader.formats.pickles import MAX_PICKLE_SIZE, MalformedPickleError, Refusal, read_pickle
from hnloader.formats.refusals import is_inert
from hnloader.formats.source import Source, open_source
from hnloader.inspection import inspect

Verdict = Literal["safe", "suspicious", "not a hypernetwork", "unreadable"]
VERDICTS: tuple[Verdict, ...] = ("suspicious", "unreadable", "not a hypernetwork", "safe")

_PICKLES_OF_A_STREAM = 5
_MOST_PICKLES = 64
_PICKLE_START = re.compile(rb"\x80[\x00-\x05]")
# Raw numbers: neither torch nor anything else unpickles them.
_STORAGE_NAME = re.compile(r"(^|/)data/\d+$")
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True)
class Finding:
    """Something in a file that no hypernetwork needs.

    Attributes:
        what: what it is, in words.
        callable: "module.name" of the global that is named or called; None where it is something else.
        offset: position of the opcode, in bytes from the beginning of the file, or of the zip member when there is one.
        member: name of the zip member; None outside of zip archives.
    """

    what: str
    callable: str | None = None
    offset: int | None = None
    member: str | None = None


@dataclass
class Scan:
    """What is known of one file.

    Attributes:
        path: the file.
        verdict: "safe": a sound hypernetwork that names nothing else. "suspicious": see `findings`. "not a
            hypernetwork": something else, in which nothing suspicious was found. "unreadable": damaged, cut off, beyond
            the limits or not to be opened; nothing can be said of what it holds.
        reason: why, in a sentence; empty for a safe file.
        findings: what is suspicious.
        callables: every global that its pickles name, the harmless ones included, in order.
        pickles: how many pickles were read.
    """

    path: Path
    verdict: Verdict = "safe"
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)
    callables: list[str] = field(default_factory=list)
    pickles: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": str(self.path),
            "verdict": self.verdict,
            "reason": self.reason,
            "pickles": self.pickles,
            "callables": self.callables,
            "findings": [vars(finding) for finding in self.findings],
        }


def scan(path: str | os.PathLike[str]) -> Scan:
    """The verdict on one file. Nothing in it is run, imported or unpacked; no error is raised for what it holds."""
    result = Scan(Path(path))
    try:
        with open_source(path) as source:
            _look_for_pickles(source, result)
            text = hns.detect(source) and result.path.suffix.lower() != hns.SUFFIX
        _judge(result, text)
    except HypernetworkError as error:
        result.verdict, result.reason = "unreadable", str(error)
    except OSError as error:
        result.verdict, result.reason = "unreadable", f"{path}: {error.strerror or error}"
    return result


def scan_all(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Scan]:
    """The verdicts on files, and on every file in folders and their subfolders, each file once."""
    seen: set[Path] = set()
    for given in map(Path, paths):
        if not given.is_dir():
            yield scan(given)
            continue
        for entry in walk(given):
            if entry.kind == "file" and entry.path not in seen:
                seen.add(entry.path)
                yield scan(entry.path)
            elif entry.kind in ("broken link", "unreadable folder"):
                yield Scan(entry.path, "unreadable", f"{entry.path}: {entry.kind}: {entry.reason}")


def _judge(result: Scan, text: bool) -> None:
    """The verdict from what the pickles named and what the loader says of the file; `text`: it may be any JSON."""
    error: HypernetworkError | None = None
    try:
        inspect(result.path)
    except HypernetworkError as caught:
        error = caught
    harmless = all(is_inert(finding.callable or "") for finding in result.findings)
    if isinstance(error, UnsafeFileError) and harmless:
        result.findings.append(Finding(str(error)))
        harmless = False
    if result.findings and not (harmless and isinstance(error, UnknownFormatError)):
        result.verdict = "suspicious"
        named = dict.fromkeys(finding.callable or finding.what for finding in result.findings)
        result.reason = f"it holds {', '.join(list(named)[:3])}" + (
            f" and {len(named) - 3} more" if len(named) > 3 else ""
        )
        return
    result.findings.clear()
    if error is not None:
        other = text or isinstance(error, UnknownFormatError)
        result.verdict = "not a hypernetwork" if other else "unreadable"
        result.reason = str(error)
        if isinstance(error, UnsupportedArchitectureError):
            result.reason += " (no code was found in it)"


# -- finding the pickles


def _look_for_pickles(source: Source, result: Scan) -> None:
    if source.head.startswith(ZIP_MAGIC):
        for name, data in _members(source):
            # Whatever its name: some program may unpickle it, and a name may be another one for it.
            _read_pickle(data, 0, result, member=name, certain=_PICKLE_START.match(data) is not None)
        return
    data = source.read(0, min(source.size, 2 * MAX_PICKLE_SIZE))
    certain = _PICKLE_START.match(data) is not None
    at: int | None = 0
    most = _PICKLES_OF_A_STREAM if is_legacy_stream(source.head) else _MOST_PICKLES
    for count in range(most):
        if at is None or at >= len(data) or (count and not _PICKLE_START.match(data, at) and most == _MOST_PICKLES):
            break
        at = _read_pickle(data, at, result, certain=certain)


def _read_pickle(data: bytes, at: int, result: Scan, *, certain: bool, member: str | None = None) -> int | None:
    """Note what the pickle at `at` names; gives its end, or None where it is damaged or no pickle at all."""
    end: int | None = None
    refused: Iterable[Refusal]
    try:
        pickle = read_pickle(data, at)
        refused, names, end = pickle.refused, pickle.names, pickle.end
    except MalformedPickleError as error:
        refused, names = error.refused, tuple(error.names)
        if not certain:
            # Any text can be read as some opcodes of protocol 0; a module that exists is what tells a pickle.
            refused = [one for one in refused if one.name.split(".")[0] in sys.stdlib_module_names]
            names = tuple(name for name in names if any(one.name == name for one in refused))
    result.pickles += 1 if certain or end is not None or names else 0
    result.callables += [name for name in names if name not in result.callables]
    for one in refused:
        is_global = one.name in names
        result.findings.append(Finding(one.what, one.name if is_global else None, one.offset, member))
    return end


def _members(source: Source) -> Iterator[tuple[str, bytes]]:
    """The zip members that may be pickles, whatever their names, flags and checksums say.

    zipfile refuses archives that torch opens all the same (a wrong CRC, a flag, another name in the local header), so
    that a call could hide behind its refusal. What cannot be read in any way is left to the loader, which says so.
    """
    try:
        source.file.seek(0)
        with zipfile.ZipFile(Directory(source.file)) as archive:
            infos = archive.infolist()[:MAX_MEMBERS]
    except Exception:  # zipfile lets errors of several kinds through for damaged archives
        infos = []
    for info in infos:
        if _STORAGE_NAME.search(info.orig_filename):
            continue
        try:
            data = _raw_member(source, info)
        except (HypernetworkError, zlib.error, struct.error):
            continue
        yield info.orig_filename, data


def _raw_member(source: Source, info: zipfile.ZipInfo) -> bytes:
    header = _LOCAL_HEADER.unpack(source.read(info.header_offset, _LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
    size = min(info.compress_size, MAX_PICKLE_SIZE, source.size - start)
    data = source.read(start, size)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        return zlib.decompressobj(-15).decompress(data, MAX_PICKLE_SIZE)
    return data
