"""`hnloader compare`: embedding and hypernetwork side by side, from the same images and the same budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import clean, note, progress_bar, stderr, stdout
from hnloader.cli.train_command import settings_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.training.comparison import Comparison
    from hnloader.training.judges import Judge
    from hnloader.training.loop import Event


@reports_errors
def compare(
    config: Annotated[Path | None, typer.Argument(help="The YAML file with the settings.", show_default=False)] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt to draw; repeatable.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A file with one prompt per line.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder of the report.")] = Path("comparison"),
    seeds: Annotated[int, typer.Option(min=1, max=64, help="Images per prompt.")] = 2,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, help="Train each this long instead of for `steps`.", show_default=False),
    ] = None,
    hypernetwork: Annotated[
        Path | None, typer.Option(help="A finished hypernetwork, which is not trained.", show_default=False)
    ] = None,
    embedding: Annotated[
        Path | None, typer.Option(help="A finished embedding, which is not trained.", show_default=False)
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="A CLIP model (folder or hub name) as a further judge.", show_default=False)
    ] = None,
    lpips: Annotated[
        bool, typer.Option("--lpips", help="LPIPS as a further judge of drift: needs the package lpips.")
    ] = False,
    preset: Annotated[str, typer.Option(help="Defaults for a `style` or a `subject`.")] = "style",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, as in `hnloader train`.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Train an embedding and a hypernetwork on the same images, and say which does what better.

    What was trained before is not trained again; an interrupted comparison goes on.
    """
    from hnloader.training import comparison, read_config

    chosen = read_config(config, settings_of(set_ or []), preset)
    asked = [*(prompt or []), *_lines(prompts)]
    comparison.check_prompts(asked)
    judges = _judges(clip, lpips)
    finished: dict[Any, Path] = {}
    finished |= {"hypernetwork": hypernetwork} if hypernetwork else {}
    finished |= {"embedding": embedding} if embedding else {}
    with progress_bar("Training") as show:

        def report(method: str, event: Event) -> None:
            if event.message:
                note(event.message)
            show(event.step, event.steps, f"Training the {method}")

        found = comparison.compare(
            chosen,
            asked,
            seeds=range(1, seeds + 1),
            budget=comparison.Budget(seconds),
            finished=finished,
            judges=judges,
            device=device,
            report=report,
        )
    paths = comparison.write(found, out, chosen.name)
    stdout().print(_table(found))
    for line in found.conclusion:
        stderr().print(Text(line), soft_wrap=True)
    for path in paths:
        stdout().print(Text(clean(path.resolve())), soft_wrap=True)


def _lines(path: Path | None) -> list[str]:
    from hnloader.errors import ConfigError
    from hnloader.files import read_regular

    if path is None:
        return []
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _judges(clip: str | None, lpips: bool) -> Callable[[list[Image]], list[Judge]]:
    from hnloader.training.judges import ClipJudge, LpipsJudge

    # Now: what is wrong with them is said before anything is trained.
    first: list[Judge] = [LpipsJudge()] if lpips else []

    def make(trained_on: list[Image]) -> list[Judge]:
        return [*first, *([ClipJudge(clip, trained_on)] if clip else [])]

    return make


def _table(found: Comparison) -> Table:
    from hnloader.training.comparison import rows_of

    header, rows = rows_of(found)
    table = Table(header[0], box=None, header_style="bold", pad_edge=False)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    return table
