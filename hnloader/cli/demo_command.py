"""`hnloader demo`: render a labeled grid with the bundled pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import clean, progress_bar, stderr, stdout

__all__ = ["demo"]


@reports_errors
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("demo-output"),
) -> None:
    """Render a labeled grid with the bundled pipeline and hypernetworks.

    Rows are prompts, columns are strengths of each hypernetwork. Nothing is downloaded.
    """
    from hnloader.demo import hypernetwork_paths
    from hnloader.demo.grid import PROMPTS, STRENGTHS, render_demo

    with progress_bar("Loading the model") as show:
        path = render_demo(out, progress=lambda done, total: show(done, total, "Sampling"))
    styles = ", ".join(hypernetwork_paths())
    strengths = ", ".join(f"{strength:g}" for strength in STRENGTHS)
    stderr().print(
        Text(
            f"{len(PROMPTS)} prompts (rows) at strengths {strengths} (columns) of the hypernetworks {styles}.\n"
            "Strength 0 is the pipeline without a hypernetwork; along a row, only the style should change.\n"
            "Grid:"
        )
    )
    stdout().print(Text(clean(path.resolve())), soft_wrap=True)
