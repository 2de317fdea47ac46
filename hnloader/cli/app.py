"""The `hnloader` command with its verbs and the options that hold for all of them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from hnloader.cli import convert_command, inspect_command, reporting, scan_command, streams
from hnloader.cli.compare_command import compare
from hnloader.cli.convert_command import convert
from hnloader.cli.dataset_command import app as dataset_app
from hnloader.cli.demo_command import demo
from hnloader.cli.explain_command import explain
from hnloader.cli.generate_command import generate
from hnloader.cli.inspect_command import inspect
from hnloader.cli.merge_command import merge
from hnloader.cli.scan_command import scan
from hnloader.cli.train_command import train
from hnloader.cli.ui_command import ui

EXIT_CODES = (
    "Exit codes: 0 done; 1 a file, model or setting could not be used; 2 the command line is wrong; "
    "70 a bug in hnloader; 130 interrupted; 141 the reader of the output has left."
)

app = typer.Typer(
    name="hnloader",
    help="Stable Diffusion hypernetworks: inspect, convert, merge, train, and make images with them.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect", epilog=inspect_command.EXIT_CODES)(inspect)
app.command("scan", epilog=scan_command.EXIT_CODES)(scan)
app.command("convert", epilog=convert_command.EXIT_CODES)(convert)
app.command("merge", epilog=EXIT_CODES)(merge)
app.command("generate", epilog=EXIT_CODES)(generate)
app.command("explain", epilog=EXIT_CODES)(explain)
app.command("train", epilog=EXIT_CODES)(train)
app.command("compare", epilog=EXIT_CODES)(compare)
app.add_typer(dataset_app, name="dataset")
app.command("demo", epilog=EXIT_CODES)(demo)
app.command("ui", epilog=EXIT_CODES)(ui)


def _show_version(wanted: bool) -> None:
    if wanted:
        from hnloader._version import __version__

        typer.echo(f"hnloader {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Show the traceback of an error (also: {reporting.DEBUG}=1).")
    ] = False,
) -> None:
    """Options that come before the verb."""
    if debug:
        os.environ[reporting.DEBUG] = "1"


def run() -> None:
    """Run the command line and exit."""
    code: str | int | None = 0
    streams.watch()
    try:
        try:
            app(prog_name="hnloader")
        except SystemExit as ended:
            code = ended.code
        streams.flush()
    except KeyboardInterrupt:
        code = reporting.INTERRUPTED
    except streams.OutputLostError as lost:
        code = lost.end()
    sys.exit(code)
