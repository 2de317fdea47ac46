"""Options that `hnloader convert` and `hnloader export-lora` share."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from hnloader.cli.shared_options import refuse

__all__ = [
    "DTYPES",
    "ON_EXISTING",
    "DryRun",
    "Dtype",
    "Exclude",
    "Files",
    "Flat",
    "OnExistingOption",
    "Out",
    "Report",
    "VerifyOnly",
    "check_usage",
    "one_of",
    "stored_dtype",
]

DTYPES = ("float32", "float16", "bfloat16")
_DTYPE_NICKNAMES = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
ON_EXISTING = ("skip", "overwrite", "rename")

WHERE = "Output"
RUN = "Run"

Files: TypeAlias = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE|FOLDER|PATTERN...",
        help="Files, folders (with their subfolders), or patterns such as 'old/**/*.pt'.",
        show_default=False,
    ),
]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="A folder that mirrors the source folders, or one file for one source. Default: next to each source.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
Flat: TypeAlias = Annotated[
    bool,
    typer.Option("--flat", help="Write all results directly into --out, without subfolders.", rich_help_panel=WHERE),
]
OnExistingOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--on-existing",
        metavar="|".join(ON_EXISTING),
        help="If another file has the result's name: skip the source, overwrite the file, or rename the result.",
        rich_help_panel=WHERE,
        autocompletion=lambda: list(ON_EXISTING),
    ),
]
Exclude: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Skip files and folders with this name or relative path, e.g. '*-old' or 'loras'. Repeatable.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
Dtype: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(DTYPES),
        help="Dtype of the stored tensors. Default: unchanged in convert, float32 in export-lora.",
        show_default=False,
        autocompletion=lambda: list(DTYPES),
    ),
]
VerifyOnly: TypeAlias = Annotated[
    bool, typer.Option("--verify-only", help="Verify existing results, without writing anything.", rich_help_panel=RUN)
]
DryRun: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, without writing anything.", rich_help_panel=RUN)
]
Report: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.json|FILE.csv",
        help="Write a report with the outcome of each file.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]


def one_of(option: str, given: str, allowed: Sequence[str], nicknames: Mapping[str, str] | None = None) -> str:
    """Return the allowed value that was given, in any case; exit with a usage error for others."""
    value = given.lower()
    value = (nicknames or {}).get(value, value)
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return refuse(option, f"Expected one of {', '.join(allowed)}, got {given!r}.{hint}")


def stored_dtype(given: str | None) -> str | None:
    """Return the name of the dtype of `--dtype`, or None."""
    return None if given is None else one_of("--dtype", given, DTYPES, _DTYPE_NICKNAMES)


def check_usage(
    *, out: Path | None, flat: bool, verify_only: bool, dry_run: bool, report: Path | None, overwrite: bool
) -> None:
    """Check combinations of options, and that the report can be written, before hours of work."""
    from hnloader.conversion.reports import REPORT_SUFFIXES, check_replaceable

    if flat and out is None:
        refuse("--flat", "Requires --out, the folder for all results.")
    if verify_only and dry_run:
        refuse("--dry-run", "Cannot be combined with --verify-only. Use one of them.")
    if report is not None:
        if report.suffix.lower() not in REPORT_SUFFIXES:
            refuse("--report", f"{report}: Expected a .json or .csv file.")
        if not report.absolute().parent.is_dir():
            refuse("--report", f"{report.parent}: The folder does not exist. Create it first.")
        if not overwrite:
            check_replaceable(report)
