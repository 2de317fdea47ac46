"""`hnloader scan`: find code in files from strangers without running it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from hnloader.cli.reporting import FAILED, exit_codes, reports_errors
from hnloader.cli.shared_options import JsonOption
from hnloader.cli.terminal import clean, stderr, stdout
from hnloader.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hnloader.scanning import Finding, Scan

__all__ = ["EXIT_CODES", "SUSPICIOUS", "scan"]

SUSPICIOUS = 4
EXIT_CODES = exit_codes({0: "all files are readable and harmless", 1: "unreadable file", SUSPICIOUS: "suspicious file"})

_STYLES = {"safe": "green", "suspicious": "bold red", "not a hypernetwork": "dim", "unreadable": "yellow"}
_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {
    "suspicious": ("error", "The file names or calls something that hypernetworks never need."),
    "unreadable": ("warning", "The file is damaged or cannot be opened, so its contents are unknown."),
}


@reports_errors
def scan(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE|FOLDER...", help="Files or folders to scan.", show_default=False),
    ],
    as_json: JsonOption = False,
    sarif: Annotated[
        Path | None, typer.Option("--sarif", metavar="FILE", help="Also save the findings as SARIF 2.1.0.")
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Also list other files in folders, and the callables of each file.")
    ] = False,
) -> None:
    """Find code in pickles, zip archives and torch files: which callable, and where.

    Nothing in the files is run. They do not have to be hypernetworks.
    """
    from hnloader.errors import HypernetworkError
    from hnloader.files import same_file
    from hnloader.scanning import scan_all

    found = list(scan_all(paths))
    if sarif is not None:
        # Results of an earlier scan are JSON; only those may be overwritten.
        if any(same_file(one.path, sarif) for one in found) and not _is_json(sarif):
            raise HypernetworkError(f"{sarif}: this is one of the scanned files. Choose another file for --sarif.")
        _write(sarif, json.dumps(_sarif(found), indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], indent=2))
    else:
        _show(found, show_all or all(path.is_file() for path in paths), show_all)
    verdicts = {one.verdict for one in found}
    if "suspicious" in verdicts:
        raise typer.Exit(SUSPICIOUS)
    if "unreadable" in verdicts:
        raise typer.Exit(FAILED)


def _show(found: Sequence[Scan], other_files: bool, callables: bool) -> None:
    from hnloader.scanning import VERDICTS

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Verdict", no_wrap=True)
    table.add_column("File", style="bold", overflow="fold")
    table.add_column("Reason", overflow="fold")
    for one in sorted(found, key=lambda one: VERDICTS.index(one.verdict)):
        if other_files or one.verdict != "not a hypernetwork":
            table.add_row(Text(one.verdict, _STYLES[one.verdict]), clean(one.path), _reason(one, callables))
    if table.row_count:
        stdout().print(table)
    counts = Counter(one.verdict for one in found)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    stderr().print(Text(f"{counted(len(found), 'file')}: {summary or 'none'}"))


def _reason(one: Scan, callables: bool) -> str:
    if one.findings:
        lines = [_place(finding) for finding in one.findings[:5]]
        lines += [f"and {len(one.findings) - 5} more"] if len(one.findings) > 5 else []
    else:
        lines = [clean(one.reason).removeprefix(clean(one.path)).lstrip(" :")] if one.reason else []
    if callables and one.callables:
        lines.append("names " + ", ".join(clean(name) for name in one.callables[:40]))
    return "\n".join(lines)


def _place(finding: Finding) -> str:
    member = f" of {clean(finding.member)}" if finding.member is not None else ""
    where = f" at byte {finding.offset:,}{member}" if finding.offset is not None else ""
    return f"{clean(finding.what)}{where}"


def _sarif(found: Sequence[Scan]) -> dict[str, Any]:
    from hnloader._version import __version__

    rules = [
        {"id": name, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}}
        for name, (level, text) in _RULES.items()
    ]
    results = [result for one in found if one.verdict in _RULES for result in _results(one)]
    driver = {"name": "hnloader scan", "version": __version__, "rules": rules}
    return {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _results(one: Scan) -> list[dict[str, Any]]:
    uri = one.path.as_uri() if one.path.is_absolute() else _quoted(one.path)
    results = []
    findings: list[Finding | None] = [*one.findings] or [None]
    for finding in findings:
        location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}}}
        properties: dict[str, Any] = {}
        if finding is not None:
            properties = {key: value for key, value in vars(finding).items() if value is not None}
            if finding.offset is not None and finding.member is None:
                location["physicalLocation"]["region"] = {"byteOffset": finding.offset, "byteLength": 1}
            if finding.member is not None:
                location["logicalLocations"] = [{"name": clean(finding.member), "kind": "member"}]
        message = clean(one.reason) if finding is None else _place(finding)
        results.append(
            {
                "ruleId": one.verdict,
                "level": _RULES[one.verdict][0],
                "message": {"text": message},
                "locations": [location],
                "properties": properties,
            }
        )
    return results


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(path.as_posix(), errors="surrogatepass")


def _is_json(path: Path) -> bool:
    from hnloader.files import open_regular

    with open_regular(path) as file:
        return file.read(1) == b"{"


def _write(path: Path, text: str) -> None:
    from hnloader.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
