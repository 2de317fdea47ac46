"""`hnloader convert`: hypernetwork files in another format, one or thousands."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from hnloader.cli.conversion_output import Progress, show_results
from hnloader.cli.convert_lora import KINDS as LORA_KINDS
from hnloader.cli.convert_lora import PANEL as _LORA
from hnloader.cli.convert_lora import (
    LoraOptions,
    LoraProgress,
    check_lora_usage,
    convert_chain,
    make_converter,
    refuse_lora_options,
    show_exports,
)
from hnloader.cli.reporting import FAILED, INTERRUPTED, SOME_FAILED, reports_errors
from hnloader.cli.terminal import note

if TYPE_CHECKING:
    from hnloader.conversion.bulk import Converter, OnExisting
    from hnloader.conversion.planning import Plan
    from hnloader.conversion.results import Result

EXIT_CODES = (
    "Exit codes: 0 every hypernetwork is converted; 3 some are, others failed; 1 none is; "
    "2 the command line is wrong; 70 a bug in hnloader; 130 interrupted; "
    "141 the reader of the output has left."
)

DTYPES = ("float32", "float16", "bfloat16")
_DTYPE_NICKNAMES = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
ON_EXISTING = ("skip", "overwrite", "rename")

_WHERE = "Where results go"
_HOW = "How they are made"
_RUN = "The run"


@reports_errors
def convert(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE|FOLDER|PATTERN...",
            help="Files, folders with all that is below them, patterns such as 'old/**/*.pt'.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="The format to write: safetensors, pt, lora or lycoris. Default: safetensors, or the ending of --out.",
            show_default=False,
            autocompletion=lambda: _targets(),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A folder, in which the tree of folders is made anew, or one file. Default: beside each source.",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="All results in --out itself, without folders.", rich_help_panel=_WHERE)
    ] = False,
    on_existing: Annotated[
        str,
        typer.Option(
            metavar="|".join(ON_EXISTING),
            help="Where another file has the result's name: leave both alone, replace it, or number the result.",
            rich_help_panel=_WHERE,
            autocompletion=lambda: list(ON_EXISTING),
        ),
    ] = "skip",
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave out files and folders with this name or path below the folder, e.g. '*-old' or 'loras'. "
            "Repeat it for several.",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Rewrite old variants in today's form, with the same outputs.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(DTYPES),
            help="Store the tensors in this type. Default: as they are, which loses nothing.",
            rich_help_panel=_HOW,
            show_default=False,
            autocompletion=lambda: list(DTYPES),
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verification/--no-verification",
            help="Read each result back and compare it with its source before it takes its name. Without: as quick "
            "and as careless as cp.",
            rich_help_panel=_HOW,
        ),
    ] = True,
    check: Annotated[
        bool,
        typer.Option("--check", help="Write nothing: verify results that are there already.", rich_help_panel=_RUN),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing: show what would be done.", rich_help_panel=_RUN)
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Files converted at once. Default: one for each processor core, at most 4.",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json|FILE.csv",
            help="Write what became of each file.",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The model that the file is for: a diffusers folder, its unet folder, a checkpoint, or a hub name.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="auto|full|NUMBER",
            help="Rank of a LoRA. Default: auto, per layer the least for the fidelity.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    fidelity: Annotated[
        float | None,
        typer.Option(
            help="With --rank auto: 1 less the error of keys and values, relative to the change. Default: 0.95.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Strength that becomes the LoRA's 1; with --chain also one for each file: 0.8,0.5. Default: 1.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    chain: Annotated[
        bool,
        typer.Option("--chain", help="One LoRA of all files, applied in this order.", rich_help_panel=_LORA),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts to sample the model with, one on a line. Default: prompts.txt in the model's folder, else a "
            "list of neutral ones.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=5,
            help="Images that are denoised to sample the model. Default: 10.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Sampling steps of each. Default: 8.", rich_help_panel=_LORA, show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the first one. Default: 0.", rich_help_panel=_LORA, show_default=False),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Their guidance (CFG) scale. Default: 5.", rich_help_panel=_LORA, show_default=False),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="diffusers|original",
            help="Names of layers. Default: those that all programs read: for SDXL the original ones, else "
            "those of diffusers.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    bias: Annotated[
        str | None,
        typer.Option(
            metavar="output|projection",
            help="Where LyCORIS files put the constant of values. Default: output, which every program applies.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="GRID.png",
            help="Write images without the hypernetwork, with it, and with the LoRA, side by side.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For a checkpoint as --base without network access: a diffusers folder of the same kind of model.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where the model runs: auto, cpu, cuda, cuda:1, mps. Default: auto.",
            rich_help_panel=_LORA,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert hypernetworks to safetensors, to the .pt form of the webuis (both bit for bit), to LoRA or LyCORIS.

    Sources are never changed. A run that was stopped goes on where it was when it is started again.
    """
    from hnloader.conversion.planning import plan as make_plan
    from hnloader.formats.registry import suffixes

    target_format = _one_of("--to", to, _targets()) if to else _format_of(out)
    overwrite = on_existing.lower() in ("overwrite", "replace")
    _check_usage(out=out, flat=flat, check=check, dry_run=dry_run, report=report, overwrite=overwrite)
    existing = cast("OnExisting", _one_of("--on-existing", on_existing, ON_EXISTING, {"replace": "overwrite"}))
    stored = None if dtype is None else _one_of("--dtype", dtype, DTYPES, _DTYPE_NICKNAMES)
    lora = LoraOptions(
        base,
        rank,
        fidelity,
        strength,
        chain,
        prompts,
        images,
        steps,
        seed,
        guidance,
        names,
        bias,
        compare,
        config,
        device,
    )
    if target_format in LORA_KINDS:
        _check_lora(normalize=normalize, verify=verify, alone=chain and (check or dry_run))
        check_lora_usage(lora, target_format, out, files)
    else:
        refuse_lora_options(lora)
    plan = make_plan(
        [] if chain else files,
        suffix=_suffix_of(target_format),
        sources=suffixes(),
        out=out,
        flat=flat,
        exclude=exclude or (),
        rewrites=normalize or stored is not None,
    )
    workers = jobs or min(4, os.cpu_count() or 1)
    with _stopping_cleanly() as cancel:
        if target_format in LORA_KINDS:
            progress = LoraProgress(cancel.is_set)
            to_lora = make_converter(lora, target_format, stored, progress)
            with progress.bar():
                if chain:
                    assert out is not None
                    results = [convert_chain(to_lora, files, strength, out, existing)]
                else:
                    results = list(_running(plan, to_lora, 1, existing, cancel, check=check, dry_run=dry_run)[1])
        else:
            converter = _converter(target_format, normalize=normalize, dtype=stored, verify=verify)
            results = _run(plan, converter, workers, existing, cancel, check=check, dry_run=dry_run)
    if report is not None:
        from hnloader.conversion.reports import write_report

        write_report(results, report, overwrite=existing == "overwrite")
    show_results(results)
    show_exports(results)
    if cancel.is_set():
        begun = len(results) - len(plan.settled)
        note(f"Interrupted after {begun:,} of {len(plan.jobs):,} files. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED)
    code = _exit_code(results)
    if code:
        raise typer.Exit(code)


# -- what was asked for


def _one_of(option: str, given: str, allowed: Sequence[str], nicknames: dict[str, str] | None = None) -> str:
    value = given.lower()
    value = (nicknames or {}).get(value, value)
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return _refuse(option, f"{given!r} is none of {', '.join(allowed)}.{hint}")


def _format_of(out: Path | None) -> str:
    suffix = "" if out is None or out.is_dir() else out.suffix.lower().removeprefix(".")
    targets = _targets()
    return suffix if suffix in targets else targets[0]


def _targets() -> list[str]:
    """Return the formats that can be written. They are looked up here, because importing torch takes a second."""
    from hnloader.formats.registry import writable_formats

    return [*(one.name for one in writable_formats()), *LORA_KINDS]


def _suffix_of(target_format: str) -> str:
    """Return how results in a format end."""
    from hnloader.formats.registry import format_named

    return f"-{target_format}.safetensors" if target_format in LORA_KINDS else format_named(target_format).suffix


def _check_usage(
    *, out: Path | None, flat: bool, check: bool, dry_run: bool, report: Path | None, overwrite: bool
) -> None:
    """What typer cannot tell by itself; a report that cannot be written is better said before hours of work."""
    from hnloader.conversion.reports import REPORT_SUFFIXES, check_replaceable

    if flat and out is None:
        _refuse("--flat", "needs --out: it says that all results go to that one folder.")
    if check and dry_run:
        _refuse("--dry-run", "and --check exclude each other; neither writes anything.")
    if report is not None:
        if report.suffix.lower() not in REPORT_SUFFIXES:
            _refuse("--report", f"{report} ends in {report.suffix!r}; a report is a .json or a .csv file.")
        if not report.absolute().parent.is_dir():
            _refuse("--report", f"{report.parent} is no folder.")
        if not overwrite:
            check_replaceable(report)


def _check_lora(*, normalize: bool, verify: bool, alone: bool) -> None:
    """Options of other formats that LoRA and LyCORIS files have no use for."""
    if normalize:
        _refuse("--normalize", "is for --to safetensors and --to pt.")
    if not verify:
        _refuse("--no-verification", "is for --to safetensors and --to pt; a LoRA's error is always measured.")
    if alone:
        _refuse("--chain", "goes with neither --check nor --dry-run.")


def _refuse(option: str, message: str) -> NoReturn:
    raise typer.BadParameter(message, param_hint=f"'{option}'")


def _converter(target_format: str, *, normalize: bool, dtype: str | None, verify: bool) -> Converter:
    from hnloader.conversion.to_format import ToFormat

    return ToFormat(_suffix_of(target_format), normalize=normalize, dtype=dtype, verify=verify)


# -- the run


def _run(
    plan: Plan,
    converter: Converter,
    jobs: int,
    on_existing: OnExisting,
    cancel: threading.Event,
    *,
    check: bool,
    dry_run: bool,
) -> list[Result]:
    doing, running = _running(plan, converter, jobs, on_existing, cancel, check=check, dry_run=dry_run)
    results = []
    with Progress(doing, plan) as progress:
        for result in running:
            results.append(result)
            progress.add(result)
    return results


def _running(
    plan: Plan,
    converter: Converter,
    jobs: int,
    on_existing: OnExisting,
    cancel: threading.Event,
    *,
    check: bool,
    dry_run: bool,
) -> tuple[str, Iterator[Result]]:
    """What is done, and its results as they come."""
    from hnloader.conversion import bulk

    if check:
        return "Checking", bulk.check_many(plan, converter, jobs=jobs, cancel=cancel)
    if dry_run:
        return "Looking", bulk.dry_run(plan, converter, jobs=jobs, on_existing=on_existing, cancel=cancel)
    return "Converting", bulk.convert_many(plan, converter, jobs=jobs, on_existing=on_existing, cancel=cancel)


@contextlib.contextmanager
def _stopping_cleanly() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that files under way are finished; a second one stops at once."""
    cancel = threading.Event()

    def stop(*_: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        with contextlib.suppress(OSError):  # nobody reads it
            os.write(2, b"\nFinishing the files that are under way. Ctrl-C again stops at once.\n")

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield cancel
        return
    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)


def _exit_code(results: Sequence[Result]) -> int:
    """0 for all, SOME_FAILED for some, FAILED for none. What is no hypernetwork counts only where nothing else is."""
    from hnloader.conversion.results import GOOD

    good = any(result.outcome in GOOD for result in results)
    failed = any(result.outcome == "failed" for result in results)
    if good:
        return SOME_FAILED if failed else 0
    return FAILED
