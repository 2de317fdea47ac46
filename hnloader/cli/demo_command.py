"""`hnloader demo`: a labeled grid from the bundled pipeline and its hypernetworks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import clean, progress_bar, stderr, stdout


@reports_errors
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")] = Path("demo-output"),
) -> None:
    """Render a labeled grid with the bundled pipeline and hypernetworks: prompts by strengths, for each style.

    Nothing is downloaded.
    """
    from hnloader.demo import hypernetwork_paths
    from hnloader.demo.grid import PROMPTS, STRENGTHS, render_demo

    with progress_bar("Loading the model") as show:
        path = render_demo(out, progress=lambda done, total: show(done, total, "Sampling"))
    styles = ", ".join(hypernetwork_paths())
    strengths = ", ".join(f"{strength:g}" for strength in STRENGTHS)
    stderr().print(
        Text(
            f"{len(PROMPTS)} prompts (rows) by strengths {strengths} (columns) of the hypernetworks {styles}.\n"
            "Strength 0 is the pipeline alone: along a row only the style should change.\n"
            "The grid:"
        )
    )
    stdout().print(Text(clean(path.resolve())), soft_wrap=True)
