"""`hnloader explain`: how hypernetworks would be computed in a model, and what that costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from hnloader.cli.generate_command import hypernetwork_library, load_for_images, read_hypernet, read_size
from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import clean, note, stdout

if TYPE_CHECKING:
    from hnloader.attention import Explanation

_STYLES = {"fold": "green", "cache": "green", "collapse": "yellow", "none": "dim"}


@reports_errors
def explain(
    hypernets: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME:STRENGTH...",
            help="Files or names, e.g. ink.pt:0.8, chained in this order; options as for generate --hypernet.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A diffusers folder, a hub name, or a checkpoint. Default: the small bundled one.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For a checkpoint without network access: a diffusers folder of the same kind of model.",
            show_default=False,
        ),
    ] = None,
    hypernet_dir: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            envvar="HNLOADER_HYPERNET_DIR",
            help="Where names are looked up. Default: ./hypernetworks and the bundled ones.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Pixels of the image. Default: the model's.", show_default=False),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Latents in one call of the model; guidance makes two of one.")
    ] = 2,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="Whether folding is allowed; in a webui it is not.")
    ] = True,
    exact: Annotated[bool, typer.Option("--exact", help="As the original programs compute it.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float16, bfloat16, float32.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Write a JSON object with every side of every layer.")
    ] = False,
) -> None:
    """Show how each attention layer of a model would compute hypernetworks, why so, and what it costs.

    Nothing is sampled. Memory and one-off work are named at the first layer that uses them.
    """
    from hnloader.attention import attach
    from hnloader.generation import load_hypernetworks

    tags = [read_hypernet(text) for text in hypernets]
    library = hypernetwork_library(hypernet_dir)
    pixels = read_size(size)
    applied = load_hypernetworks(tags, library, paths=True)
    if any(one.tag.start > 0 or one.tag.end < 1 for one in applied):
        note("start and end are left out: what is shown holds while all of them act.")
    applications = [replace(one.application(), start=0.0, end=1.0) for one in applied]
    pipeline = load_for_images(model, device, dtype, config).pipeline
    scale = pipeline.vae_scale_factor
    latents = (pixels["height"] // scale, pixels["width"] // scale) if pixels else None
    tokens = pipeline.tokenizer.model_max_length
    with attach(pipeline, applications, fold=fold, exact=exact) as attachment:
        explanation = attachment.explain(batch=batch, size=latents, tokens=tokens)
    if as_json:
        stdout().print(Text(json.dumps(explanation.to_dict(), indent=2)), soft_wrap=True)
    else:
        _show(explanation)


def _show(explanation: Explanation) -> None:
    from hnloader.attention.explain import HEADER

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in HEADER:
        table.add_column(name, overflow="fold", justify="right" if name == "kept" else "left")
    for rows, cells in explanation.grouped():
        style = _STYLES.get(rows[0].plan, "")
        plan = HEADER.index("plan")
        table.add_row(*(Text(clean(cell), style if index == plan else "") for index, cell in enumerate(cells)))
    stdout().print(table)
    stdout().print(Text(explanation.summary()), soft_wrap=True)
