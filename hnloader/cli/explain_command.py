"""`hnloader explain`: show which layers compute hypernetworks for free, which do not and why, and the cost."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import (
    ConfigOption,
    DeviceOption,
    DtypeOption,
    HypernetDirOption,
    JsonOption,
    ModelOption,
    hypernetwork_library,
    load_for_images,
    read_hypernet,
    read_size,
    refuse,
)
from hnloader.cli.terminal import note, stdout

__all__ = ["explain"]

# Of a text; all parts of the cost grow with it, so that shares of the model's own work stay the same.
_TOKENS = 512


@reports_errors
def explain(
    hypernets: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME:STRENGTH...",
            help="Files or names such as ink.pt:0.8, chained in this order; options as for generate --hypernet.",
            show_default=False,
        ),
    ],
    model: ModelOption = None,
    config: ConfigOption = None,
    hypernet_dir: HypernetDirOption = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Image size in pixels. Default: the model's.", show_default=False),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Latents or texts per model call; CFG needs two per image.")
    ] = 2,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="Fold into copies of the weights where possible.")
    ] = True,
    exact: Annotated[bool, typer.Option("--exact", help="Compute exactly as the original programs do.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show which attention layers compute hypernetworks for free, which do not and why, and what it costs.

    It generates no image and no text.
    """
    from hnloader.attention import attach
    from hnloader.generation import load_hypernetworks
    from hnloader.language_models import is_language_model, load_language_model

    tags = [read_hypernet(text) for text in hypernets]
    library = hypernetwork_library(hypernet_dir)
    pixels = read_size(size)
    applied = load_hypernetworks(tags, library, paths=True)
    if any(one.tag.start > 0 or one.tag.end < 1 for one in applied):
        note("start and end are ignored: the cost is that of steps in which all hypernetworks act.")
    applications = [replace(one.application(), start=0.0, end=1.0) for one in applied]
    if model is not None and is_language_model(model):
        target, tokens, latents = load_language_model(model, device=device, dtype=dtype).model, _TOKENS, None
        if pixels:
            refuse("--size", "The model is a language model. Leave the size out.")
    else:
        target = load_for_images(model, device, dtype, config).pipeline
        scale, tokens = target.vae_scale_factor, target.tokenizer.model_max_length
        latents = (pixels["height"] // scale, pixels["width"] // scale) if pixels else None
    with attach(target, applications, fold=fold, exact=exact) as attachment:
        explanation = attachment.explain(batch=batch, size=latents, tokens=tokens)
    text = json.dumps(explanation.to_dict(), indent=2) if as_json else str(explanation)
    stdout().print(Text(text), soft_wrap=True)
