"""Scan downloaded files for what they would do if a program unpickled them, without unpickling them.

`scan` returns a verdict for any file. It looks at the file as every program may: as consecutive pickles, as a zip
archive and as a tar archive, whatever its format is. An import or a call that no sound file needs is a `Finding`. The
rule is an allow-list, so that unknown callables are found too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hnloader.embeddings.embedding_files import is_embedding
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

__all__ = ["VERDICTS", "Finding", "Scan", "Verdict", "scan", "scan_all"]

_log = logging.getLogger(__name__)

Verdict = Literal["safe", "suspicious", "not a hypernetwork", "unreadable"]
VERDICTS: tuple[Verdict, ...] = ("suspicious", "unreadable", "not a hypernetwork", "safe")

_PICKLES_OF_A_STREAM = 5
_MAX_NAMES = 1_000  # of globals in one result
_MAX_FINDINGS = 100


@dataclass(frozen=True)
class Finding:
    """Something in a file that no hypernetwork needs.

    Attributes:
        what: Description in words.
        callable: "module.name" of the global that is named or called; None for other findings.
        offset: Position of the opcode in the file, or in the zip member. Bytes.
        member: Name of the zip member; None outside of zip archives.
    """

    what: str
    callable: str | None = None
    offset: int | None = None
    member: str | None = None


@dataclass
class Scan:
    """The result for one file.

    Attributes:
        path: The file.
        verdict: "safe": a sound hypernetwork or embedding. "suspicious": see `findings`. "not a hypernetwork": another
            file without findings. "unreadable": damaged, cut off, above a limit, or not accessible.
        reason: Reason for the verdict in a sentence; empty for a safe file.
        findings: Suspicious parts.
        callables: Every global that its pickles name, including harmless ones, in order.
        pickles: Number of pickles.
        unknown: The part that could not be checked; empty if all were.
    """

    path: Path
    verdict: Verdict = "safe"
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)
    callables: list[str] = field(default_factory=list)
    pickles: int = 0
    unknown: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.path),
            "verdict": self.verdict,
            "reason": self.reason,
            "pickles": self.pickles,
            "callables": self.callables,
            "findings": [vars(finding) for finding in self.findings],
        }


def scan(path: str | os.PathLike[str]) -> Scan:
    """Scan one file. Nothing in it is run or imported, and its contents never raise an error.

    Args:
        path: File to scan.

    Returns:
        Verdict with its findings.

    Example:
        >>> import pathlib, pickle, tempfile
        >>> from hnloader.scanning import scan
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "style.pt"
        >>> _ = file.write_bytes(b"cos\\nsystem\\n(S'true'\\ntR.")  # a pickle that calls os.system
        >>> result = scan(file)
        >>> result.verdict, result.callables
        ('suspicious', ['os.system'])
    """
    result = Scan(Path(path))
    try:
        with open_source(path) as source:
            _look_for_pickles(source, result)
            found = format_of(source)
            may_be_json = (
                found is not None
                and found.read_composition is not None
                and result.path.suffix.lower() not in found.suffixes
            )
        _decide(result, may_be_json)
    except HypernetworkError as error:
        _log.debug("%s", path, exc_info=True)
        result.verdict, result.reason = "unreadable", str(error)
    except OSError as error:
        _log.debug("%s", path, exc_info=True)
        result.verdict, result.reason = "unreadable", f"{path}: {error.strerror or error}."
    return result


def scan_all(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Scan]:
    """Scan files, and every file in folders and their subfolders, each file once.

    Args:
        paths: Files and folders.

    Yields:
        Result for each file; broken links and unreadable folders are "unreadable".
    """
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
                yield Scan(entry.path, "unreadable", f"{entry.path}: {entry.kind}: {entry.reason}.")


def _decide(result: Scan, may_be_json: bool) -> None:
    """Set the verdict from the findings in the pickles and the loader's error."""
    error: HypernetworkError | None = None
    try:
        inspect(result.path)
    except HypernetworkError as caught:
        _log.debug("%s", result.path, exc_info=True)
        error = None if isinstance(caught, UnknownFormatError) and is_embedding(result.path) else caught
    if isinstance(error, UnsafeFileError) and not result.findings:
        result.findings.append(Finding(str(error)))
        result.verdict, result.reason = "suspicious", str(error)
    elif result.findings:
        result.verdict = "suspicious"
        named = dict.fromkeys(finding.callable or finding.what for finding in result.findings)
        result.reason = f"It holds {', '.join(list(named)[:3])}" + (
            f" and {len(named) - 3} more." if len(named) > 3 else "."
        )
    elif result.unknown:
        result.verdict, result.reason = "unreadable", f"{result.path}: {result.unknown}"
    elif error is not None:
        other = may_be_json or isinstance(error, UnknownFormatError)
        result.verdict = "not a hypernetwork" if other else "unreadable"
        result.reason = str(error)
        if isinstance(error, UnsupportedArchitectureError):
            result.reason += " No code was found in it."


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
    """Look at consecutive pickles from the beginning of the file."""
    at, count = 0, 0
    is_stream = is_legacy_stream(source.head)
    while at < source.size:
        # Numbers follow the pickles of a stream, so that a limit there is irrelevant.
        behind_stream = is_stream and count >= _PICKLES_OF_A_STREAM
        trace = _look(source, Place(at, source.size), result, budget, limit_counts=not behind_stream)
        if trace is None or trace.ending != "stop":
            break
        at, count = trace.end, count + 1


def _look_at_members(source: Source, result: Scan, budget: Budget) -> None:
    """Look at the members of a zip archive of any name, because some program may unpickle them.

    Programs read different contents from an archive that is not in canonical form. For one of them each local header
    may be a member.
    """
    try:
        archive = open_archive(source)
    except HypernetworkError:
        for member in local_headers(source):
            _look(source, Place(member.start, member.start + member.size, member), result, budget, member.name)
        if has_unknown_method(source):
            result.unknown = result.unknown or "A zip member has a compression that hnloader does not unpack."
        return
    for name, member in archive.members.items():
        place = Place(member.start, member.start + member.size, member)
        if _look(source, place, result, budget, name) is None:
            result.unknown = result.unknown or f"The zip member {shown(name)} is damaged."


def _look(
    source: Source,
    place: Place,
    result: Scan,
    budget: Budget,
    member: str | None = None,
    *,
    limit_counts: bool = True,
) -> Trace | None:
    """Note what the pickle at a place names; return None if its data cannot be unpacked."""
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
        where = f"The zip member {shown(member)}" if member is not None else "A pickle in it"
        result.unknown = result.unknown or f"{where} exceeds the limits of the scan."
    return trace
