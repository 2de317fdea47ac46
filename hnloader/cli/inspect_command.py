"""`hnloader inspect`: show the contents of hypernetwork files."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hnloader.cli.reporting import FAILED, exit_codes, reports_errors
from hnloader.cli.shared_options import EmbeddingDirOption, HypernetDirOption, JsonOption
from hnloader.cli.terminal import clean, fields, none_found, shortened, stderr, stdout
from hnloader.units import counted, size_text

if TYPE_CHECKING:
    from hnloader.cli.inspect_image import ImageInfo, ImageReader
    from hnloader.embeddings.embedding_info import EmbeddingInfo
    from hnloader.inspection import FileInfo

__all__ = ["EXIT_CODES", "inspect"]

_log = logging.getLogger(__name__)

EXIT_CODES = exit_codes(
    {0: "all files are valid hypernetworks or embeddings", FAILED: "at least one is not, or none was found"}
)

_MOST_VALUES = 200
_MOST_LINES = 3  # more files of another kind share one line, which names the first `_NAMED`
_NAMED = 2
_WIDE = 110  # columns; narrower terminals get fewer columns


@dataclass(frozen=True)
class Inspected:
    """A file with its contents or an error."""

    path: Path
    label: str
    info: FileInfo | EmbeddingInfo | None
    error: Exception | None = None
    image: ImageInfo | None = None


@reports_errors
def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE|FOLDER...", help="Files or folders.", show_default=False),
    ],
    as_json: JsonOption = False,
    hashes: Annotated[
        bool | None,
        typer.Option(
            "--hash/--no-hash",
            help="Show hashes, which requires reading whole files. Default: only for a single file.",
            show_default=False,
        ),
    ] = None,
    hypernet_dir: HypernetDirOption = None,
    embedding_dir: EmbeddingDirOption = None,
) -> None:
    """Show the contents of hypernetworks and embeddings: widths, architecture, origin, compatible models.

    For a generated image (PNG, JPEG, WebP), show its hypernetworks and embeddings, and find their files.

    Reads headers only and runs nothing in a file. Lists damaged files and other kinds of files with the reason.
    """
    from hnloader.cli.inspect_image import ImageReader

    folders = [path for path in paths if path.is_dir()]
    images = ImageReader(hypernet_dir, embedding_dir)
    found = [_inspect_file(path, label, folders, images) for path, label in _files(paths)]
    images.close()
    if as_json:
        typer.echo(json.dumps([_as_dict(one, bool(hashes)) for one in found], indent=2))
    elif len(found) == 1 and not paths[0].is_dir():
        _show_one(found[0], hashes is not False)
    else:
        _show_many(found, bool(hashes))
    if not found or any(one.error for one in found):
        raise typer.Exit(FAILED)


def _files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return every file once, with its label in the output."""
    from hnloader.embeddings.embedding_files import library_of_all

    found: dict[Path, str] = {}
    for path in paths:
        if path.is_dir():
            for file in sorted(library_of_all([path]).files(), key=lambda file: file.relative.as_posix().casefold()):
                label = file.relative.as_posix() if len(paths) == 1 else str(file.path)
                found.setdefault(file.path, label)
        else:
            found.setdefault(path, str(path))
    return list(found.items())


def _inspect_file(path: Path, label: str, folders: Sequence[Path], images: ImageReader) -> Inspected:
    import hnloader
    from hnloader.embeddings.embedding_info import read_if_embedding
    from hnloader.errors import HypernetworkError, UnknownFormatError

    try:
        try:
            if (image := images.read(path)) is not None:
                return Inspected(path, label, None, image=image)
            return Inspected(path, label, hnloader.inspect(path, folders))
        except UnknownFormatError:
            if (embedding := read_if_embedding(path)) is None:
                raise
            return Inspected(path, label, embedding)
    except (HypernetworkError, OSError) as error:
        _log.debug("%s", path, exc_info=True)
        return Inspected(path, label, None, error)


def _as_dict(one: Inspected, hashes: bool) -> dict[str, Any]:
    if one.image is not None:
        return one.image.to_dict(one.path)
    if one.info is None:
        assert one.error is not None
        return {"path": str(one.path), "error": {"kind": type(one.error).__name__, "message": str(one.error)}}
    return one.info.to_dict(hashes=hashes)


def _show_one(one: Inspected, hashes: bool) -> None:
    if one.image is not None:
        body = fields(one.image.details())
    elif one.info is not None:
        from hnloader.inspection import FileInfo

        details = _details(one.info, hashes) if isinstance(one.info, FileInfo) else _embedding_details(one.info, hashes)
        body = fields(details)
    else:
        stdout().print(Text("✗ ", "bold red") + _error_line(one), soft_wrap=True)
        return
    # Without right padding, a SHA-256 fits into 80 columns.
    title = Text(clean(one.label), "bold")
    panel = Panel(body, title=title, title_align="left", border_style="cyan", expand=False, padding=(0, 0, 0, 1))
    stdout().print(panel)


def _embedding_details(info: EmbeddingInfo, hashes: bool) -> list[tuple[str, str | Text]]:
    embedding = info.embedding
    rows: list[tuple[str, str | Text]] = [
        ("Name", shortened(embedding.name)),
        ("Kind", "textual-inversion embedding"),
        ("File", size_text(info.size)),
        ("Fits", Text(embedding.made_for, "green")),
        ("Vectors", f"{embedding.count:,} of {' and '.join(f'{width}' for width in info.widths)} ({info.dtype})"),
        ("Word", f"{shortened(embedding.name)}, or <{shortened(embedding.name)}>"),
    ]
    trained = _training(embedding.step, embedding.sd_checkpoint, embedding.sd_checkpoint_name)
    rows += [("Trained", trained)] if embedding.step is not None or embedding.sd_checkpoint else []
    further = [
        f"{shortened(key)}: {shortened(value)}" for key, value in islice(embedding.metadata.items(), _MOST_VALUES)
    ]
    rows += [("" if position else "Metadata", text) for position, text in enumerate(further)]
    return rows + ([("SHA-256", info.sha256)] if hashes else [])


def _details(info: FileInfo, hashes: bool) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = [
        ("Name", shortened(info.name)),
        ("Written by", _origin(info)),
        ("File", f"{size_text(info.size)}, {info.format} ({info.container})"),
        ("Fits", _fits(info)),
        ("Widths", _widths(info)),
        ("Architecture", _architecture(info)),
        ("Parameters", f"{info.parameters:,} ({', '.join(info.dtypes) or 'none'})"),
    ]
    trained = _training(info.step, info.checkpoint, info.checkpoint_name)
    rows += [("Trained", trained)] if info.step is not None or info.checkpoint else []
    rows += [("Made of", clean(member)) for member in info.members]
    further = [f"{shortened(key)}: {shortened(value)}" for key, value in islice(info.further.items(), _MOST_VALUES)]
    further += [f"and {len(info.further) - _MOST_VALUES:,} more"] if len(info.further) > _MOST_VALUES else []
    rows += [("" if position else "Metadata", text) for position, text in enumerate(further)]
    if hashes:
        rows.append(("SHA-256", info.sha256))
        rows.append(("Webui hash", f"{info.short_hash} (2022: {info.legacy_hash})"))
    return rows


def _fits(info: FileInfo) -> Text:
    if not info.widths:
        return Text("any model")
    models = info.made_for
    return Text(", ".join(models), "green") if models else Text("no known model", "yellow")


def _origin(info: FileInfo) -> str:
    return ", ".join(filter(None, (clean(info.program), shortened(info.variant))))


def _widths(info: FileInfo) -> str:
    return shortened(", ".join(info.scopes)) or "-"


def _training(step: int | None, short_hash: str | None, name: str | None) -> str:
    steps = "unknown number of steps" if step is None else counted(step, "step")
    checkpoint = shortened(name or "")
    if short_hash:
        checkpoint = f"{checkpoint or 'checkpoint'} ({shortened(short_hash)})"
    return f"{steps} on {checkpoint}" if checkpoint else steps


def _architecture(info: FileInfo) -> str:
    return str(info.architecture) if info.architecture else "a composition"


def _show_many(found: Sequence[Inspected], hashes: bool) -> None:
    from hnloader.embeddings.embedding_info import EmbeddingInfo
    from hnloader.inspection import FileInfo

    infos = [(one, one.info) for one in found if one.info is not None]
    good = [(one, info) for one, info in infos if isinstance(info, FileInfo)]
    embeddings = [(one, info) for one, info in infos if isinstance(info, EmbeddingInfo)]
    bad = [one for one in found if one.error]
    if good:
        stdout().print(_table(good, hashes))
    if embeddings:
        stdout().print(_embedding_table(embeddings))
    for one in found:
        if one.image is not None:
            _show_one(one, hashes)
    for kind, group in _by_kind(bad):
        if kind and len(group) > _MOST_LINES:
            stdout().print(Text("✗ ", "bold red") + _group_line(kind, group), soft_wrap=True)
            continue
        for one in group:
            stdout().print(Text("✗ ", "bold red") + _error_line(one), soft_wrap=True)
    if infos or bad or not found:
        stderr().print(_summary(len(good), len(embeddings), len(bad)))


def _by_kind(found: Sequence[Inspected]) -> list[tuple[str, list[Inspected]]]:
    """Group files of other kinds by kind; every other file is its own group with the kind ""."""
    from hnloader.errors import UnknownFormatError

    groups: dict[tuple[str, Path | None], list[Inspected]] = {}
    for one in found:
        # The rest of the message differs from file to file: keys, shapes, what to do.
        words = (
            re.split(r"[,:;(\[]|\. | of shape", _message(one).lstrip(": "), maxsplit=1)[0].removeprefix("is ").strip()
        )
        kind = words if isinstance(one.error, UnknownFormatError) else ""
        groups.setdefault((kind, None if kind else one.path), []).append(one)
    return [(kind, group) for (kind, _), group in groups.items()]


def _group_line(kind: str, found: Sequence[Inspected]) -> Text:
    """Return a line such as `1,204 files: a LoRA; a.safetensors, b.safetensors and 1,202 more`."""
    names = ", ".join(clean(one.label) for one in found[:_NAMED])
    return Text.assemble((f"{len(found):,} files", "bold"), f": {kind}; {names} and {len(found) - _NAMED:,} more")


def _error_line(one: Inspected) -> Text:
    """Return the label of a file and its error."""
    return Text.assemble((clean(one.label), "bold"), _message(one))


def _message(one: Inspected) -> str:
    """Return the error of a file without the path at its start."""
    error, path = one.error, clean(one.path)
    reason = clean((isinstance(error, OSError) and error.strerror) or error)
    return reason.removeprefix(path) if reason.startswith(path) else f": {reason}"


def _embedding_table(found: Sequence[tuple[Inspected, EmbeddingInfo]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Embedding", style="bold", overflow="fold", min_width=20)
    for name in ("Fits", "Vectors", "Steps", "Size"):
        table.add_column(name, justify="left" if name == "Fits" else "right")
    for one, info in found:
        step = "" if info.embedding.step is None else f"{info.embedding.step:,}"
        fits = Text(info.embedding.made_for, "green")
        table.add_row(clean(one.label), fits, f"{info.embedding.count:,}", step, size_text(info.size))
    return table


def _table(found: Sequence[tuple[Inspected, FileInfo]], hashes: bool) -> Table:
    wide = stdout().width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("File", style="bold", overflow="fold", min_width=20)
    table.add_column("Fits")
    table.add_column("Architecture", overflow="fold")
    if wide:
        table.add_column("Widths", overflow="fold")
        table.add_column("Written by", overflow="fold")
        table.add_column("Steps", justify="right")
    if hashes:
        table.add_column("Hash")
    table.add_column("Size", justify="right", no_wrap=True)
    for one, info in found:
        row: list[str | Text] = [clean(one.label), _fits(info), _architecture(info)]
        if wide:
            row += [_widths(info), _origin(info), "" if info.step is None else f"{info.step:,}"]
        row += [info.short_hash] if hashes else []
        table.add_row(*row, size_text(info.size))
    return table


def _summary(good: int, embeddings: int, bad: int) -> Text:
    if not good and not embeddings and not bad:
        return none_found()
    text = Text(counted(good, "hypernetwork"), "green" if good else "yellow")
    if embeddings:
        text += Text(f", {counted(embeddings, 'embedding')}", "green")
    return text + Text(f", {counted(bad, 'other file')}", "red") if bad else text
