"""`hnloader merge`: merge hypernetworks into one file, or into a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import HypernetDirOption, hypernetwork_library, read_hypernet, refuse
from hnloader.cli.terminal import clean, fields, note, progress_bar, stderr, stdout
from hnloader.units import counted

if TYPE_CHECKING:
    from hnloader.conversion.merging import Merged, Part
    from hnloader.prompt import Tag

__all__ = ["merge"]


@reports_errors
def merge(
    hypernetworks: Annotated[
        list[str],
        typer.Argument(help="Files or names, each with a strength: ink.pt:0.8, or ink.pt:0.8:k=1,v=0.5."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, such as merged.pt or chain.hns.", show_default=False)
    ],
    mode: Annotated[
        str,
        typer.Option(
            help="chain: one after the other; side-by-side: all on the same input; average: mean of the weights."
        ),
    ] = "chain",
    dtype: Annotated[
        str | None, typer.Option(help="float32 (the default), float16 or bfloat16.", show_default=False)
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Bake into a copy of this model: a diffusers folder, or a .safetensors or .ckpt file.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    folders: HypernetDirOption = None,
) -> None:
    """Merge several hypernetworks into one file, or bake them into a checkpoint.

    Reports whether the result is exact. If a chain does not fit into one network, write it to a .hns file.
    """
    if os.path.lexists(output) and not overwrite:
        from hnloader.errors import ExistingFileError

        raise ExistingFileError(f"{output}: the file exists. Use --overwrite, or choose another name.")
    tags = [read_hypernet(text) for text in hypernetworks]
    if into is None:
        _merge(hypernetworks, tags, output, mode, dtype or "float32", folders, overwrite=overwrite)
    else:
        for option, given in (("--mode", mode != "chain"), ("--dtype", dtype is not None)):
            if given:
                refuse(option, "Cannot be combined with --into, which chains, and keeps the types of the checkpoint.")
        _bake(tags, into, output, folders, overwrite=overwrite)
    stdout().print(clean(output.resolve()), soft_wrap=True)


def _merge(
    texts: Sequence[str],
    tags: Sequence[Tag],
    output: Path,
    mode: str,
    dtype: str,
    folders: Sequence[Path] | None,
    *,
    overwrite: bool,
) -> None:
    """Merge hypernetworks into one hypernetwork file."""
    from hnloader.conversion import merging
    from hnloader.errors import HypernetworkError
    from hnloader.files import same_file
    from hnloader.formats.hns import FORMAT as HNS
    from hnloader.formats.reading import files_of
    from hnloader.generation import load_hypernetworks
    from hnloader.loading import save

    for tag, text in zip(tags, texts, strict=True):
        if tag.blocks or tag.start != 0 or tag.end != 1:
            raise HypernetworkError(
                f"{text!r}: a merged file cannot hold block, start or end. Give only a strength, k and v."
            )
    library = hypernetwork_library(folders)
    parts = [
        merging.Part(one.hypernetwork, one.tag.strength * one.tag.k, one.tag.strength * one.tag.v, one.hash, one.path)
        for one in load_hypernetworks(tags, library, paths=True)
    ]
    files = [file for part in parts if part.path is not None for file in files_of(part.path, library.folders)]
    if any(same_file(file, output) for file in files):
        raise HypernetworkError(f"{output}: this is one of the files to merge. Write the result elsewhere.")
    if output.suffix.lower() in HNS.suffixes:
        if merging.checked_mode(mode) != "chain":
            raise HypernetworkError(f"{output}: a .hns file keeps a chain. Write a .pt file for {mode!r}.")
        if dtype != "float32":
            raise HypernetworkError(f"{output}: a .hns file names other files and has no dtype. Leave out --dtype.")
        _keep(parts, output, files, overwrite=overwrite)
    else:
        made = merging.merge(parts, mode=merging.checked_mode(mode), name=output.stem, dtype=dtype)
        save(made.hypernetwork, output, overwrite=overwrite, sources=files)
        _show(made, dtype)


def _bake(tags: Sequence[Tag], into: Path, output: Path, folders: Sequence[Path] | None, *, overwrite: bool) -> None:
    """Bake hypernetworks into a checkpoint, and show the result."""
    from hnloader.conversion.baking import bake
    from hnloader.generation import load_hypernetworks

    applied = load_hypernetworks(tags, hypernetwork_library(folders), paths=True)
    items = [replace(one.application(), hypernetwork=one.path) for one in applied]
    with progress_bar("Baking") as progress:
        made = bake(items, into, output, overwrite=overwrite, note=note, progress=progress)
    types = " and ".join(made.dtypes)
    rows = [
        ("base", clean(made.base)),
        ("changed", f"{counted(made.layers, 'attention layer')}, {types}"),
        ("exact", "yes, up to rounding" if made.dtypes == ("float32",) else f"yes, up to the rounding of {types}"),
        ("error", f"{made.error:.1e} of the largest key or value, on random inputs"),
    ]
    stderr().print(fields(rows))


def _keep(parts: list[Part], output: Path, files: list[Path], *, overwrite: bool) -> None:
    """Write a chain as a composition."""
    from hnloader.conversion.composing import composition
    from hnloader.files import replacing

    text = composition(parts, output)
    with replacing(output, overwrite=overwrite, sources=files) as temporary:
        temporary.write_text(text, encoding="utf-8")
    stderr().print("Written as a composition. It is exact and needs its member files.")


def _show(made: Merged, dtype: str) -> None:
    exact = "yes, up to rounding" if made.exact else "no"
    if made.exact and dtype != "float32":
        exact = f"yes, up to the rounding of {dtype}"
    rows = [
        ("how", made.how),
        ("exact", exact),
        ("error", f"{made.error:.1e} of the largest output, on random inputs"),
        ("architecture", str(made.hypernetwork.architecture)),
    ]
    stderr().print(fields(rows))
