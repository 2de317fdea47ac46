"""What a file from a stranger would do if it were unpickled, found without unpickling it.

`scan` gives a verdict for any file. It looks at the file as every program might: as pickles in a row, as a zip archive,
as a tar archive, whatever hnloader takes it for. Each pickle is followed by `formats.tracing`; an import or a call that
no sound file needs is a `Finding`. This is an allow-list: a callable need not be known as dangerous to be found.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hnloader.errors import (
    CorruptFileError,
    HypernetworkError,
    UnknownFormatError,
    UnsafeFileError,
    UnsupportedArchitectureError,
)
from hnloader.folders import walk
from hnloader.formats import zip_archive
from hnloader.formats.ambiguity import (
    Place,
    has_unknown_method,
    has_zip_end,
    is_tar,
    local_headers,
    tar_members,
    trace_place,
)
from hnloader.formats.checkpoint import is_legacy_stream
from hnloader.formats.known_globals import joined
from hnloader.formats.registry import format_of
from hnloader.formats.source import Source, open_source
from hnloader.formats.tracing import Budget, Trace
from hnloader.formats.zip_archive import DEFLATED, open_archive
from hnloader.inspection import inspect
from hnloader.texts import shown

Verdict = Literal["safe", "suspicious", "not a hypernetwork", "unreadable"]
VERDICTS: tuple[Verdict, ...] = ("suspicious", "unreadable", "not a hypernetwork", "safe")

_PICKLES_OF_A_STREAM = 5
_MAX_NAMES = 1_000  # of globals in one result
_MAX_FINDINGS = 100


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
        unknown: what could not be looked into; empty where all could.
    """

    path: Path
    verdict: Verdict = "safe"
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)
    callables: list[str] = field(default_factory=list)
    pickles: int = 0
    unknown: str = ""

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
            found = format_of(source)
            composed = found is not None and found.read_composition is not None
            text = composed and found is not None and result.path.suffix.lower() not in found.suffixes
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
    if isinstance(error, UnsafeFileError) and not result.findings:
        result.findings.append(Finding(str(error)))
        result.verdict, result.reason = "suspicious", str(error)
    elif result.findings:
        result.verdict = "suspicious"
        named = dict.fromkeys(finding.callable or finding.what for finding in result.findings)
        result.reason = f"it holds {', '.join(list(named)[:3])}" + (
            f" and {len(named) - 3} more" if len(named) > 3 else ""
        )
    elif result.unknown:
        result.verdict, result.reason = "unreadable", f"{result.path}: {result.unknown}"
    elif error is not None:
        other = text or isinstance(error, UnknownFormatError)
        result.verdict = "not a hypernetwork" if other else "unreadable"
        result.reason = str(error)
        if isinstance(error, UnsupportedArchitectureError):
            result.reason += " (no code was found in it)"


# -- finding the pickles


def _look_for_pickles(source: Source, result: Scan) -> None:
    budget = Budget()
    _look_at_rows(source, result, budget)
    try:
        if source.head.startswith(zip_archive.MAGIC) or has_zip_end(source):
            _look_at_members(source, result, budget)
        if is_tar(source):
            for place in tar_members(source):
                _look(source, place, result, budget)
    except CorruptFileError as error:
        result.unknown = result.unknown or str(error).removeprefix(f"{source.label}: ")


def _look_at_rows(source: Source, result: Scan, budget: Budget) -> None:
    """Pickles from the beginning of the file, each directly behind the one before."""
    at, count = 0, 0
    is_stream = is_legacy_stream(source.head)
    while at < source.size:
        # What stands behind the pickles of a stream are numbers; a limit there says nothing.
        behind_stream = is_stream and count >= _PICKLES_OF_A_STREAM
        trace = _look(source, Place(at, source.size), result, budget, limit_counts=not behind_stream)
        if trace is None or trace.ending != "stop":
            break
        at, count = trace.end, count + 1


def _look_at_members(source: Source, result: Scan, budget: Budget) -> None:
    """The members of a zip archive, whatever their names: some program may unpickle them.

    An archive in another form than the canonical one has as many contents as there are readers, and each of its local
    headers may be a member for one of them.
    """
    try:
        archive = open_archive(source)
    except HypernetworkError:
        for member in local_headers(source):
            _look(source, Place(member.start, member.start + member.size, member), result, budget, member.name)
        if has_unknown_method(source):
            result.unknown = result.unknown or "one of its zip members is packed in a way that hnloader does not unpack"
        return
    for name, member in archive.members.items():
        place = Place(member.start, member.start + member.size, member)
        if _look(source, place, result, budget, name) is None:
            result.unknown = result.unknown or f"its zip member {shown(name)} is damaged"


def _look(
    source: Source,
    place: Place,
    result: Scan,
    budget: Budget,
    member: str | None = None,
    *,
    limit_counts: bool = True,
) -> Trace | None:
    """Note what the pickle at a place names; None where its data cannot be unpacked."""
    try:
        trace = trace_place(source, place, budget)
    except CorruptFileError:
        return None
    if trace.is_certain or trace.names:
        result.pickles += 1
    for name in trace.names:
        if joined(name) not in result.callables and len(result.callables) < _MAX_NAMES:
            result.callables.append(joined(name))
    base = place.start if place.member is not None and place.member.method != DEFLATED else 0
    for one in trace.found[: _MAX_FINDINGS - len(result.findings)]:
        named = joined(one.name) if one.name is not None else None
        result.findings.append(Finding(one.what, named, one.offset - base, member))
    if trace.ending == "limit" and limit_counts:
        where = f"its zip member {shown(member)}" if member is not None else "a pickle in it"
        result.unknown = result.unknown or f"{where} goes beyond the limits of what is read"
    return trace
