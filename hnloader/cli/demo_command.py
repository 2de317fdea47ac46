"""`hnloader demo`: render a labeled grid with the bundled pipeline, or print texts of the bundled language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import clean, progress_bar, stderr, stdout

__all__ = ["demo"]

_SIDE_BY_SIDE = 72  # columns of a terminal from which on the texts stand side by side
_PAGE = 120


@reports_errors
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("demo-output"),
    text: Annotated[
        bool, typer.Option("--text", help="Print stories of the bundled language model instead, plain and styled.")
    ] = False,
) -> None:
    """Render a labeled grid with the bundled pipeline and hypernetworks.

    Rows are prompts, columns are strengths of each hypernetwork. Nothing is downloaded.
    """
    if text:
        _print_stories()
        return
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


def _print_stories() -> None:
    import torch

    from hnloader.demo.stories import PROMPTS, tell_stories

    # Threads gain nothing for so small a model. On a busy computer they wait for each other, 30 times as long.
    torch.set_num_threads(1)
    with progress_bar("Loading the model"):
        told = tell_stories()
    console = stdout()
    piped = not console.is_terminal
    for index, prompt in enumerate(PROMPTS):
        console.print(Text(prompt, "bold"), soft_wrap=piped)
        texts = {label: stories[index] for label, stories in told.items()}
        if not piped and console.width >= _SIDE_BY_SIDE:
            console.print(_columns(texts), width=min(console.width, _PAGE))
        else:
            for label, story in texts.items():
                console.print(Text.assemble((f"{label}: ", "dim"), story), soft_wrap=piped)
        console.print()
    stderr().print(Text("All texts have the same model and seed; each hypernetwork is a small file at strength 1."))


def _columns(texts: dict[str, str]) -> Table:
    """Return texts side by side."""
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
    for label in texts:
        table.add_column(label, ratio=1)
    table.add_row(*map(Text, texts.values()))
    return table
