"""The results of a conversion of many files as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from hnloader.conversion.results import Result
from hnloader.errors import HypernetworkError
from hnloader.files import check_free, replacing

REPORT_SUFFIXES = (".json", ".csv")
_COLUMNS = ("source", "target", "outcome")
_START = 64


def write_report(results: Iterable[Result], path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write one entry per file: an array of objects to a `.json` file, a table with a header to a `.csv` file.

    Every entry has source, target, outcome, reason, error, size (bytes) and seconds; what the converter tells
    besides follows. Missing values are null in JSON and empty in CSV.

    Args:
        results: What became of each file.
        path: The file. An earlier report is replaced in any case.
        overwrite: Replace another file too; False raises an error instead.

    Raises:
        ExistingFileError: Another file stands there and is to stay.
        HypernetworkError: Another ending, or the file cannot be written.
    """
    target = Path(path)
    entries = [as_dict(result) for result in sorted(results, key=lambda result: str(result.source))]
    suffix = target.suffix.lower()
    if suffix not in REPORT_SUFFIXES:
        raise HypernetworkError(f"{target} ends in {suffix!r}; a report is a .json or a .csv file")
    if not overwrite:
        check_replaceable(target)
    text = _csv(entries) if suffix == ".csv" else json.dumps(entries, indent=2) + "\n"
    with replacing(target) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="surrogateescape"))


def check_replaceable(path: Path) -> None:
    """Raise ExistingFileError where something else than an earlier report stands at `path`."""
    if os.path.lexists(path) and not _is_report(path):
        check_free(path)


def _is_report(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        return False
    if path.suffix.lower() == ".csv":
        header = ",".join(_COLUMNS).encode()
        return start.startswith(header) or start.strip() == _COLUMNS[0].encode()
    return re.match(rb'\[(\s*\{\s*"source": |\]\s*$)', start) is not None


def as_dict(result: Result) -> dict[str, object]:
    """A result as plain values."""
    entry: dict[str, object] = {
        "source": str(result.source),
        "target": None if result.target is None else str(result.target),
        "outcome": result.outcome,
        "reason": result.reason or None,
        "error": result.error or None,
        "size": result.size,
        "seconds": result.seconds,
    }
    return entry | {key: value for key, value in result.details.items() if key not in entry}


def _csv(entries: list[dict[str, object]]) -> str:
    columns = list(dict.fromkeys(key for entry in entries for key in entry)) or ["source"]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(entry.get(column)) for column in columns] for entry in entries)
    return text.getvalue()


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, (dict, list, tuple)) else value
