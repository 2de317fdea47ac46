"""`hnloader export-lora`: export hypernetworks as LoRA and LyCORIS files."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich import box
from rich.table import Table
from rich.text import Text

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
from hnloader.cli.conversion_run import Run, finish, show, stopping_cleanly
from hnloader.cli.export_decoder_lora import export_for_decoder
from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import refuse
from hnloader.cli.terminal import Show, clean, note, progress_bar, stderr, stdout
from hnloader.units import size_text

if TYPE_CHECKING:
    from hnloader.conversion.bulk import OnExisting
    from hnloader.conversion.lora.bulk_export import LoraExporter
    from hnloader.conversion.lora.lora_options import LoraOptions
    from hnloader.conversion.results import Result

__all__ = ["export_lora"]

KINDS = ("lora", "lycoris")
_MOST_DIGITS = 9  # of a rank

_FIT = "Fit"
_SAMPLING = "Sampling the model"


def _name_base(given: str | None) -> None:
    """Answer users who know the option of the other commands."""
    if given is not None:
        refuse("--model", "Name the base model with --base.")


@reports_errors
def export_lora(
    files: Files,
    base: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Base model of the LoRA: a diffusers folder, its unet folder, a checkpoint, or a Hub name; or a "
            "language model in a folder of transformers or a .gguf file.",
            show_default=False,
        ),
    ],
    model: Annotated[str | None, typer.Option("--model", "-m", hidden=True, callback=_name_base, is_eager=True)] = None,
    kind: Annotated[
        str,
        typer.Option(
            metavar="|".join(KINDS),
            help="lora: low-rank, for every program. lycoris: full differences, exact for linear hypernetworks.",
            autocompletion=lambda: list(KINDS),
        ),
    ] = "lora",
    strength: Annotated[
        str,
        typer.Option(
            metavar="NUMBER",
            help="Hypernetwork strength that LoRA strength 1 stands for; with --chain also one per file: 0.8,0.5.",
        ),
    ] = "1",
    chain: Annotated[bool, typer.Option("--chain", help="Combine all sources, in this order, in one file.")] = False,
    dtype: Dtype = None,
    names: Annotated[
        str,
        typer.Option(
            metavar="auto|diffusers|original",
            help="Layer names. auto: original for SDXL, diffusers for other models.",
        ),
    ] = "auto",
    grid: Annotated[
        Path | None,
        typer.Option(
            metavar="GRID.png",
            help="Save a grid of images: without the hypernetwork, with it, and with the LoRA.",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="auto|full|NUMBER",
            help="Rank of a LoRA. Default: auto, the lowest rank of each layer that reaches --fidelity.",
            rich_help_panel=_FIT,
            show_default=False,
        ),
    ] = None,
    fidelity: Annotated[
        float | None,
        typer.Option(
            help="Target of --rank auto: 1 minus the error of keys and values relative to the change. Default: 0.95.",
            rich_help_panel=_FIT,
            show_default=False,
        ),
    ] = None,
    refine: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            min=0,
            help="Then train the LoRA for this time to give the UNet's outputs with the hypernetwork.",
            rich_help_panel=_FIT,
            show_default=False,
        ),
    ] = None,
    bias: Annotated[
        str | None,
        typer.Option(
            metavar="output|projection",
            help="Where a LyCORIS file stores the bias of the values. Default: output, which every program reads.",
            rich_help_panel=_FIT,
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts to sample with, one per line. Default: prompts.txt in the model's folder, or built-in ones.",
            rich_help_panel=_SAMPLING,
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=5, help="Images to denoise.", rich_help_panel=_SAMPLING)] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps per image.", rich_help_panel=_SAMPLING)] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.", rich_help_panel=_SAMPLING)] = 0,
    guidance: Annotated[float, typer.Option(help="Guidance (CFG) scale.", rich_help_panel=_SAMPLING)] = 5.0,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For a checkpoint as --base: diffusers folder with the model configuration, so nothing is downloaded.",
            rich_help_panel=_SAMPLING,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device of the model: auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_SAMPLING)
    ] = "auto",
    out: Out = None,
    flat: Flat = False,
    on_existing: OnExistingOption = "skip",
    exclude: Exclude = None,
    verify_only: VerifyOnly = False,
    dry_run: DryRun = False,
    report: Report = None,
) -> None:
    """Export hypernetworks as LoRA or LyCORIS files, for programs that do not support hypernetworks.

    A LoRA changes the weights of a model, so it is made for one base model. style.pt becomes style-lora.safetensors.
    For a language model, style.safetensors becomes the folder style-lora, as peft writes it.
    """
    import torch

    from hnloader.conversion.lora.lora_options import LoraOptions
    from hnloader.conversion.planning import plan as make_plan
    from hnloader.formats.registry import suffixes
    from hnloader.language_models import is_language_model

    kind = one_of("--kind", kind, KINDS)
    existing = one_of("--on-existing", on_existing, ON_EXISTING, {"replace": "overwrite"})
    overwrite = existing == "overwrite"
    check_usage(out=out, flat=flat, verify_only=verify_only, dry_run=dry_run, report=report, overwrite=overwrite)
    _check_kind(kind, {"--rank": rank, "--fidelity": fidelity, "--refine": refine}, bias)
    strengths = _strengths(strength)
    decoder = is_language_model(base)
    _check_chain(
        files, out, strengths, chain=chain, alone=verify_only or dry_run, suffix="" if decoder else ".safetensors"
    )
    _check_grid(grid, several=not chain and (len(files) > 1 or not files[0].is_file()))
    if fidelity is not None and not 0 < fidelity < 1:
        refuse("--fidelity", f"Expected a number between 0 and 1, such as 0.95, got {fidelity:g}.")
    options = LoraOptions(
        kind=cast("Any", kind),
        strength=strengths[0],
        rank=_rank(rank),
        fidelity=0.95 if fidelity is None else fidelity,
        dtype=getattr(torch, stored_dtype(dtype) or "float32"),
        names=cast("Any", one_of("--names", names, ("auto", "diffusers", "original"))),
        bias=cast("Any", one_of("--bias", bias or "output", ("output", "projection"))),
        prompts=prompts,
        images=images,
        steps=steps,
        seed=seed,
        guidance=guidance,
        refine=refine or 0.0,
    )
    if decoder:
        if len(files) > 1 and not chain:
            refuse("--chain", "Several files for a language model are chained. Add --chain, or name one file.")
        export_for_decoder(
            files,
            base,
            options,
            out,
            device,
            strengths=strengths,
            overwrite=overwrite,
            unsuitable={
                "--kind": kind != "lora",
                "--grid": grid is not None,
                "--verify-only": verify_only,
                "--dry-run": dry_run,
                "--report": report is not None,
            },
        )
        return
    plan = make_plan(
        [] if chain else files,
        suffix=f"-{kind}.safetensors",
        sources=suffixes(),
        out=out,
        flat=flat,
        exclude=exclude or (),
    )
    run = Run(plan, cast("OnExisting", existing), 1, verify_only, dry_run)
    with stopping_cleanly() as cancel:
        progress = _Progress(cancel.is_set)
        exporter = _exporter(options, base, config, device, grid, progress)
        with progress.bar():
            if chain:
                assert out is not None
                results = [_exported_chain(exporter, files, strengths, out, run.on_existing)]
            else:
                results = list(run.results(exporter, cancel))
    show(results, report, overwrite=overwrite)
    _show_exports(results)
    finish(results, plan, interrupted=cancel.is_set())


def _exporter(
    options: LoraOptions, base: str, config: Path | None, device: str, grid: Path | None, progress: _Progress
) -> LoraExporter:
    from hnloader.conversion.lora.base_model import open_base
    from hnloader.conversion.lora.bulk_export import LoraExporter

    with stderr().status("Opening the model ..."):
        model = open_base(base, config=config, device=device, note=note)
    return LoraExporter(model, options, grid, progress, note)


class _Progress:
    """A bar for the steps of one file. Cancelling stops in the middle of it, with nothing written."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._show: Show = lambda done, total, text: None

    def __call__(self, done: int, total: int, text: str) -> None:
        """Show a step. Raises KeyboardInterrupt."""
        if self._cancelled():
            raise KeyboardInterrupt
        self._show(done, total, text)

    @contextlib.contextmanager
    def bar(self) -> Iterator[None]:
        """Show the bar."""
        with progress_bar("Exporting") as self._show:
            yield


def _exported_chain(
    exporter: LoraExporter, files: Sequence[Path], strengths: Sequence[float], target: Path, existing: str
) -> Result:
    """Export several hypernetworks as one file, in the order of the command line."""
    from hnloader.conversion.planning import numbered
    from hnloader.conversion.results import Result

    label = " + ".join(path.name for path in files)
    if os.path.lexists(target):
        if existing == "skip":
            return Result(files[0], label, "skipped", target, f"{target} exists")
        if existing == "rename":
            target = next(path for path in numbered(target) if not os.path.lexists(path))
    each = strengths if len(strengths) > 1 else [*strengths] * len(files)
    details = exporter.export(list(zip(files, each, strict=True)), target, overwrite=existing == "overwrite")
    size = sum(path.stat().st_size for path in files)
    return Result(files[0], label, "converted", target, size=size, details=details)


# -- options


def _check_kind(kind: str, for_lora: Mapping[str, object], bias: str | None) -> None:
    for option, value in for_lora.items():
        if kind == "lycoris" and value is not None:
            refuse(option, "Applies only to --kind lora. LyCORIS files hold full differences.")
    if kind == "lora" and bias is not None:
        refuse("--bias", "Applies only to --kind lycoris. A LoRA has no bias.")


def _check_chain(
    files: Sequence[Path], out: Path | None, strengths: Sequence[float], *, chain: bool, alone: bool, suffix: str
) -> None:
    if len(strengths) > 1 and not (chain and len(strengths) == len(files)):
        refuse("--strength", "Expected one number, or with --chain one per file: 0.8,0.5.")
    if not chain:
        return
    if missing := [path for path in files if not path.is_file()]:
        refuse("--chain", f"{missing[0]}: Expected a file. --chain takes files, not folders or patterns.")
    if out is None or out.suffix.lower() != suffix:
        wanted = f"a {suffix} file" if suffix else "a folder without a suffix"
        refuse("--out", f"Expected {wanted}, because --chain writes one result.")
    if alone:
        refuse("--chain", "Cannot be combined with --verify-only or --dry-run.")


def _check_grid(grid: Path | None, *, several: bool) -> None:
    if grid is None:
        return
    if grid.suffix.lower() != ".png":
        refuse("--grid", f"{grid}: Expected a .png file.")
    if several:
        refuse("--grid", "Expected a single file, or several files with --chain.")


def _rank(text: str | None) -> Any:
    if text is None:
        return "auto"
    if text in ("auto", "full"):
        return text
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) < 1:
        refuse("--rank", f"Expected auto, full or a whole number of at least 1, got {text!r}.")
    return int(text)


def _strengths(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        refuse("--strength", f"Expected a number, or with --chain one per file such as 0.8,0.5, got {text!r}.")
    return found


# -- results


def _show_exports(results: Iterable[Result]) -> None:
    """Show the errors by block and the warnings of each written file."""
    for result in results:
        if result.outcome == "converted" and result.target is not None:
            _show_export(result.target, result.details)


def _show_export(target: Path, details: Mapping[str, Any]) -> None:
    stdout().print(Text(clean(target), "bold"), soft_wrap=True)
    stdout().print(_facts(target, details), soft_wrap=True)
    stdout().print(_error_table(details["errors"]))
    if refinement := details.get("refinement"):
        stopped = ", stopped early" if refinement["interrupted"] else ""
        stdout().print(
            f"Error of the UNet's output, relative to the hypernetwork's change: {refinement['before']:.1%} before "
            f"refining, {refinement['after']:.1%} after ({refinement['steps']:,} steps{stopped}).",
            soft_wrap=True,
        )
    images = details.get("images")
    if images:
        stdout().print(
            f"Mean pixel difference from the hypernetwork's images (0 to 255): "
            f"{images['converted']:.1f} with this file, {images['without']:.1f} without it.",
            soft_wrap=True,
        )
    stdout().print(Text(f"Errors: from {details['statistics']}.", "dim"), soft_wrap=True)
    for warning in details["warnings"]:
        stderr().print(Text("Warning: ", "bold yellow") + Text(clean(warning)), soft_wrap=True)


def _facts(target: Path, details: Mapping[str, Any]) -> Text:
    ranks = sorted(details["ranks"].values())
    rank = f"rank {ranks[0]}" if len(set(ranks)) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else ""
    size = size_text(target.stat().st_size)
    facts = ["LoRA" if details["kind"] == "lora" else "LyCORIS", f"for {clean(details['base'])}", rank, size]
    facts.append("exact up to rounding" if details["exact"] else f"fidelity {details['fidelity']:.3f}")
    return Text(", ".join(filter(None, facts)))


def _error_table(errors: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Error of")
    for title in ("keys' change", "values' change", "keys", "values"):
        table.add_column(title, justify="right")
    for block, sides in errors.items():
        numbers = [_percent(sides, side, of) for of in ("of_change", "of_whole") for side in ("k", "v")]
        table.add_row(block, *numbers, style="bold" if block == "overall" else None)
    return table


def _percent(sides: Mapping[str, Mapping[str, float]], side: str, of: str) -> str:
    if side not in sides:
        return ""
    percent = 100 * sides[side][of]
    return f"{percent:.1f} %" if percent >= 0.05 or percent == 0 else f"{percent:.0e} %"
