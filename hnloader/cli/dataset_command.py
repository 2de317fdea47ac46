"""`hnloader dataset check`: check the images of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import clean, progress_bar, stderr, stdout
from hnloader.texts import shown
from hnloader.units import counted

if TYPE_CHECKING:
    from hnloader.training import Config
    from hnloader.training.captions import Count
    from hnloader.training.dataset import Dataset

__all__ = ["app"]


class _Group(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command; point to `check` if its name is missing."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(f"No such command {shown(args[0])}. Did you mean 'hnloader dataset check {args[0]}'?")
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Group, help="Check training images.", no_args_is_help=True)


@app.callback()
def dataset() -> None:
    """Check training images."""


@app.command("check")
@reports_errors
def check(
    folder: Annotated[Path, typer.Argument(help="Folder with the images.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of the training, for its `data` settings.")
    ] = None,
    resolution: Annotated[int, typer.Option(min=64, help="Pixels, if the configuration has none.")] = 512,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG) of the images as trained.")
    ] = None,
) -> None:
    """List the images with training size, caption and problems.

    Exit code 1 if a file is excluded.
    """
    from hnloader.training import read_config
    from hnloader.training.captions import check_caption_lengths, count_with_placeholder, training_caption
    from hnloader.training.dataset import read_folder

    settings = read_config(config)
    with progress_bar("Reading the images") as show:
        found = read_folder(folder, settings.data, lambda done, total: show(done, total, "Reading the images"))
    count, max_tokens = _token_counter(settings)
    count = count_with_placeholder(settings, count, settings.embedding.num_vectors)
    check_caption_lengths(found, lambda image, index: training_caption(image, settings, index), count, max_tokens)
    side = settings.data.resolution or resolution
    stdout().print(_table(found, settings, side))
    for problem in found.problems:
        kind = Text("excluded: ", "bold red") if problem.excluded else Text("note: ", "bold yellow")
        stderr().print(kind + Text(clean(f"{problem.path}: {problem.message}")), soft_wrap=True)
    excluded = sum(problem.excluded for problem in found.problems)
    stderr().print(Text(f"{counted(len(found.images), 'image')} to train on, {counted(excluded, 'file')} excluded."))
    if sheet is not None:
        _write_sheet(found, settings, side, sheet)
        stdout().print(Text(clean(sheet.resolve())), soft_wrap=True)
    if excluded:
        raise typer.Exit(1)


def _token_counter(config: Config) -> tuple[Count, int]:
    """Return the counter of the model's tokenizer if `model` is a folder, else one without a vocabulary."""
    from hnloader.training.captions import MAX_TOKENS, count_tokens, token_counter

    folder = Path(config.model).expanduser() / "tokenizer"
    if not config.model or not folder.is_dir():
        return count_tokens, MAX_TOKENS
    from transformers import CLIPTokenizer

    try:
        return token_counter(CLIPTokenizer.from_pretrained(folder))
    except (OSError, ValueError, TypeError, KeyError):
        return count_tokens, MAX_TOKENS


def _table(found: Dataset, config: Config, side: int) -> Table:
    from hnloader.training.captions import caption_of
    from hnloader.training.contact_sheet import SIZE_MULTIPLE
    from hnloader.training.pixels import training_size

    table = Table("image", "size", "training size", "caption", box=None, header_style="bold", pad_edge=False)
    for index, image in enumerate(found.images):
        width, height = training_size(image.size, config.data, side, SIZE_MULTIPLE)
        table.add_row(
            Text(clean(image.path.relative_to(found.folder))),
            f"{image.size[0]} x {image.size[1]}",
            f"{width} x {height}",
            Text(clean(caption_of(image, config.data, config.name or "{name}", index))),
        )
    return table


def _write_sheet(found: Dataset, config: Config, side: int, path: Path) -> None:
    from hnloader.errors import HypernetworkError
    from hnloader.files import replacing, same_file
    from hnloader.training.contact_sheet import contact_sheet

    if any(same_file(image.path, path) for image in found.images):
        raise HypernetworkError(f"{path}: this is an image of the dataset. Write the sheet to another file.")
    sheet = contact_sheet(found, config.data, side)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
