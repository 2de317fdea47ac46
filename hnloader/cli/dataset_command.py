"""`hnloader dataset check`: what a training would see of a folder, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import clean, progress_bar, stderr, stdout

if TYPE_CHECKING:
    from hnloader.training.config import Config
    from hnloader.training.dataset import Dataset

app = typer.Typer(help="Images to train on.", no_args_is_help=True)


@app.callback()
def dataset() -> None:
    """Images to train on."""


@app.command("check")
@reports_errors
def check(
    folder: Annotated[Path, typer.Argument(help="The folder with the images.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("--config", help="The training's YAML file, for its `data` settings.")
    ] = None,
    resolution: Annotated[int, typer.Option(min=64, help="Pixels, where the configuration says none.")] = 512,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG): each image as it is trained.")
    ] = None,
) -> None:
    """List the images with the size and caption that they are trained at and with, and what is wrong.

    Exit code 1 when a file would be left out.
    """
    from hnloader.training import read_config
    from hnloader.training.dataset import count_with_word, note_long_captions, read_folder, trained_caption

    chosen = read_config(config)
    with progress_bar("Reading the images") as show:
        found = read_folder(folder, chosen.data, lambda done, total: show(done, total, "Reading the images"))
    count, room = _counter(chosen)
    counted = count_with_word(chosen, count, chosen.embedding.vectors)
    note_long_captions(found, lambda image, index: trained_caption(image, chosen, index), counted, room)
    side = chosen.data.resolution or resolution
    stdout().print(_table(found, chosen, side))
    for problem in found.problems:
        kind = Text("left out: ", "bold red") if problem.fatal else Text("note: ", "bold yellow")
        stderr().print(kind + Text(clean(f"{problem.path} {problem.what}")), soft_wrap=True)
    left_out = sum(problem.fatal for problem in found.problems)
    stderr().print(Text(f"{len(found.images)} images to train on, {left_out} files left out"))
    if sheet is not None:
        stdout().print(Text(clean(_write_sheet(found, chosen, side, sheet).resolve())), soft_wrap=True)
    if left_out:
        raise typer.Exit(1)


def _counter(config: Config) -> tuple[Callable[[str], int], int]:
    """How captions are counted, and how many tokens are read: by the model's own tokenizer where its folder is named.

    Without one a caption counts as what it takes at least.
    """
    from hnloader.training.dataset import TOKENS, count_tokens

    folder = Path(config.model).expanduser() / "tokenizer"
    if not config.model or not folder.is_dir():
        return count_tokens, TOKENS
    from transformers import CLIPTokenizer

    from hnloader.training.denoiser import token_counter

    try:
        return token_counter(CLIPTokenizer.from_pretrained(folder))
    except (OSError, ValueError, TypeError, KeyError):
        return count_tokens, TOKENS


def _table(found: Dataset, config: Config, side: int) -> Table:
    from hnloader.training.dataset import caption_of
    from hnloader.training.pixels import bucket
    from hnloader.training.sheet import GRAIN

    table = Table("image", "size", "trained at", "caption", box=None, header_style="bold", pad_edge=False)
    for index, image in enumerate(found.images):
        wide, high = bucket(image.size, side, GRAIN) if config.data.buckets else (side, side)
        table.add_row(
            Text(clean(image.path.relative_to(found.folder))),
            f"{image.size[0]} x {image.size[1]}",
            f"{wide} x {high}",
            Text(clean(caption_of(image, config.data, config.name or "{name}", index))),
        )
    return table


def _write_sheet(found: Dataset, config: Config, side: int, path: Path) -> Path:
    from hnloader.errors import HypernetworkError
    from hnloader.files import replacing, same_file
    from hnloader.training.sheet import contact_sheet

    if any(same_file(image.path, path) for image in found.images):
        raise HypernetworkError(f"{path} is one of the images of the dataset. Write the sheet elsewhere.")

    sheet = contact_sheet(found, config.data, side)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path
