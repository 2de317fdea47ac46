"""Reports of a conversion of many files, as JSON or CSV."""

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
from hnloader.files import check_free, open_regular, replacing

__all__ = ["REPORT_SUFFIXES", "as_dict", "check_replaceable", "write_report"]

# First characters of cells that spreadsheets compute, or skip before they look; also in full width.
_FORMULA = (*"=+-@\t\r\n\0", "\uff1d", "\uff0b", "\uff0d", "\uff20")
REPORT_SUFFIXES = (".json", ".csv")
_COLUMNS = ("source", "target", "outcome")
_START = 64


def write_report(results: Iterable[Result], path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write one entry per file: an array of objects to a `.json` file, or a table with a header to a `.csv` file.

    Missing values are null in JSON and empty in CSV. Names outside of UTF-8 use Python's escapes: the byte FF is
    \\udcff.

    Args:
        results: The outcome of each file.
        path: The report. It replaces an earlier report in any case.
        overwrite: Replace another file too; otherwise raise an error. Default: True.

    Raises:
        ExistingFileError: Another file exists, and `overwrite` is False.
        HypernetworkError: The suffix is unknown, or the file cannot be written.
    """
    target = Path(path)
    entries = [as_dict(result) for result in sorted(results, key=lambda result: str(result.source))]
    suffix = target.suffix.lower()
    if suffix not in REPORT_SUFFIXES:
        raise HypernetworkError(f"{target}: found the suffix {suffix!r}. Give a .json or .csv file.")
    if not overwrite:
        check_replaceable(target)
    text = _csv(entries) if suffix == ".csv" else json.dumps(entries, indent=2) + "\n"
    with replacing(target) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def check_replaceable(path: Path) -> None:
    """Raise ExistingFileError if `path` is something else than an earlier report."""
    if os.path.lexists(path) and not _is_report(path):
        check_free(path)


def _is_report(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with open_regular(path) as file:
            start = file.read(_START)
    except OSError:
        return False
    if path.suffix.lower() == ".csv":
        header = _csv([]).encode().strip()
        return start.startswith(header)
    return re.match(rb'\[(\s*\{\s*"source": |\]\s*$)', start) is not None


def as_dict(result: Result) -> dict[str, object]:
    """Return a result as plain values."""
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
    # Quoted: some spreadsheets split at semicolons or tabs, which would begin another cell.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([_cell(column) for column in columns])
    writer.writerows([_cell(entry.get(column)) for column in columns] for entry in entries)
    return text.getvalue()


def _cell(value: object) -> object:
    """Return a cell. Names of files can begin like a formula, which a spreadsheet would compute."""
    if isinstance(value, (dict, list, tuple)):
        value = json.dumps(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
