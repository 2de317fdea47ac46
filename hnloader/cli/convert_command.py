"""`hnloader convert`: convert one hypernetwork file or thousands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hnloader.cli.conversion_options import (
    ON_EXISTING,
    DryRun,
    Dtype,
    Exclude,
    Files,
    Flat,
    OnExistingOption,
    Out,
    Report,
    VerifyOnly,
    check_usage,
    one_of,
    stored_dtype,
)
from hnloader.cli.conversion_output import Progress
from hnloader.cli.conversion_run import Run, finish, show, stopping_cleanly
from hnloader.cli.reporting import reports_errors

if TYPE_CHECKING:
    from hnloader.conversion.bulk import OnExisting

__all__ = ["convert"]


@reports_errors
def convert(
    files: Files,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Format to write, such as safetensors or pt; for embeddings also bin or png. "
            "Default: the suffix of --out, otherwise safetensors.",
            show_default=False,
            autocompletion=lambda: list(_formats()),
        ),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Rewrite old variants in the current form; their outputs stay the same.")
    ] = False,
    dtype: Dtype = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Verify each result against its source before it gets its name. --no-verify is faster.",
        ),
    ] = True,
    out: Out = None,
    flat: Flat = False,
    on_existing: OnExistingOption = "skip",
    exclude: Exclude = None,
    verify_only: VerifyOnly = False,
    dry_run: DryRun = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Files to convert at once. Default: one per CPU core, at most 4.",
            rich_help_panel="Run",
            show_default=False,
        ),
    ] = None,
    report: Report = None,
) -> None:
    """Convert hypernetworks and embeddings to safetensors, or to the .pt form of the webuis, bit for bit.

    Sources stay unchanged. To resume a run that was stopped, repeat the command.
    """
    from hnloader.conversion.planning import plan as make_plan
    from hnloader.conversion.to_format import ToFormat
    from hnloader.embeddings.embedding_files import all_suffixes, counts

    formats = _formats()
    suffix = formats[one_of("--to", to, list(formats)) if to else _format_of(out)]
    existing = one_of("--on-existing", on_existing, ON_EXISTING, {"replace": "overwrite"})
    overwrite = existing == "overwrite"
    check_usage(out=out, flat=flat, verify_only=verify_only, dry_run=dry_run, report=report, overwrite=overwrite)
    stored = stored_dtype(dtype)
    plan = make_plan(
        files,
        suffix=suffix,
        sources=all_suffixes(),
        out=out,
        flat=flat,
        exclude=exclude or (),
        rewrites=normalize or stored is not None,
        accepts=counts,
    )
    run = Run(plan, cast("OnExisting", existing), jobs or min(4, os.cpu_count() or 1), verify_only, dry_run)
    converter = ToFormat(suffix, normalize=normalize, dtype=stored, verify_results=verify)
    results = []
    with stopping_cleanly() as cancel, Progress(run.doing, plan) as progress:
        for result in run.results(converter, cancel):
            results.append(result)
            progress.add(result)
    show(results, report, overwrite=overwrite)
    finish(results, plan, interrupted=cancel.is_set())


def _format_of(out: Path | None) -> str:
    suffix = "" if out is None or out.is_dir() else out.suffix.lower().removeprefix(".")
    formats = _formats()
    return suffix if suffix in formats else next(iter(formats))


def _formats() -> dict[str, str]:
    """Return the suffix of each format that can be written. A function, because importing torch takes a second."""
    from hnloader.embeddings.embedding_writer import EMBEDDINGS_ONLY
    from hnloader.formats.registry import writable_formats

    return {one.name: one.suffix for one in writable_formats()} | {each[1:]: each for each in EMBEDDINGS_ONLY}
