"""`hnloader merge`: several hypernetworks, or one at a strength, as one file that stands alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import hypernetwork_library, read_hypernet
from hnloader.cli.terminal import clean, fields, stderr, stdout

if TYPE_CHECKING:
    from hnloader.conversion.merging import Merged, Part


@reports_errors
def merge(
    hypernetworks: Annotated[
        list[str],
        typer.Argument(help="Files or names, each with its strength: ink.pt:0.8, also ink.pt:0.8:k=1,v=0.5."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: .pt, .safetensors, or .hns.", show_default=False)
    ],
    mode: Annotated[
        str,
        typer.Option(help="chain: one after the other; side-by-side: all on the same input; average: of the weights."),
    ] = "chain",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    folders: Annotated[
        list[Path] | None,
        typer.Option("--hypernet-dir", help="Where names are looked up; repeatable.", show_default=False),
    ] = None,
) -> None:
    """Make one file of several hypernetworks, or put a strength into a file.

    Says whether the result gives exactly what its parts give. What one file cannot hold is refused with the
    reason; a .hns file keeps it as a composition.
    """
    from hnloader.conversion import merging
    from hnloader.files import same_file
    from hnloader.formats.hns import FORMAT as HNS
    from hnloader.formats.reading import files_of
    from hnloader.generation import load_hypernetworks
    from hnloader.loading import save

    if os.path.lexists(output) and not overwrite:
        _refuse(f"{output} is there already; --overwrite replaces it")
    tags = [read_hypernet(text) for text in hypernetworks]
    for tag, text in zip(tags, hypernetworks, strict=True):
        if tag.blocks or tag.start != 0 or tag.end != 1:
            _refuse(f"{text!r}: a file holds no blocks and no part of the sampling; give a strength, k and v")
    library = hypernetwork_library(folders)
    parts = [
        merging.Part(one.hypernetwork, one.tag.strength * one.tag.k, one.tag.strength * one.tag.v, one.hash, one.path)
        for one in load_hypernetworks(tags, library, paths=True)
    ]
    files = [file for part in parts if part.path is not None for file in files_of(part.path, library.folders)]
    if any(same_file(file, output) for file in files):
        _refuse(f"{output} is one of the files to merge; write the result elsewhere")
    if output.suffix.lower() in HNS.suffixes:
        if merging.checked_mode(mode) != "chain":
            _refuse(f"{output}: a .hns file keeps a chain, not {mode!r}. Write a .pt or .safetensors file.")
        if dtype != "float32":
            _refuse(f"{output}: a .hns file names files and has no dtype of its own. Leave out --dtype.")
        _keep(parts, output, files, overwrite=overwrite)
    else:
        made = merging.merge(parts, mode=merging.checked_mode(mode), name=output.stem, dtype=dtype)
        save(made.hypernetwork, output, overwrite=overwrite, sources=files)
        _show(made, dtype)
    stdout().print(clean(output.resolve()), soft_wrap=True)


def _keep(parts: list[Part], output: Path, files: list[Path], *, overwrite: bool) -> None:
    """Write the chain as a composition."""
    from hnloader.conversion.merging import composition
    from hnloader.files import replacing

    text = composition(parts, output)
    with replacing(output, overwrite=overwrite, sources=files) as temporary:
        temporary.write_text(text, encoding="utf-8")
    stderr().print("kept as a composition: exact, but not one file that stands alone")


def _show(made: Merged, dtype: str) -> None:
    exact = "yes, up to rounding" if made.exact else "no"
    if made.exact and dtype != "float32":
        exact = f"yes, up to the rounding of {dtype}"
    rows = [
        ("how", made.how),
        ("exact", exact),
        ("measured", f"differs from its parts by {made.error:.1e} of the largest output, on random inputs"),
        ("architecture", str(made.hypernetwork.architecture)),
    ]
    stderr().print(fields(rows))


def _refuse(message: str) -> NoReturn:
    from hnloader.errors import HypernetworkError

    raise HypernetworkError(message)
