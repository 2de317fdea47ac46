"""The `hnloader` command with its verbs and global options."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from hnloader.cli import conversion_run, inspect_command, reporting, scan_command, streams
from hnloader.cli.compare_command import compare
from hnloader.cli.convert_command import convert
from hnloader.cli.dataset_command import app as dataset_app
from hnloader.cli.demo_command import demo
from hnloader.cli.explain_command import explain
from hnloader.cli.export_lora_command import export_lora
from hnloader.cli.generate_command import generate
from hnloader.cli.inspect_command import inspect
from hnloader.cli.merge_command import merge
from hnloader.cli.predict_command import predict
from hnloader.cli.scan_command import scan
from hnloader.cli.train_command import train
from hnloader.cli.train_predictor_command import train_predictor
from hnloader.cli.ui_command import ui
from hnloader.cli.write_command import write

__all__ = ["app", "run"]

app = typer.Typer(
    name="hnloader",
    help="Inspect, convert, merge, train and apply Stable Diffusion hypernetworks.",
    epilog=reporting.exit_codes(),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect", epilog=inspect_command.EXIT_CODES)(inspect)
app.command("scan", epilog=scan_command.EXIT_CODES)(scan)
app.command("convert", epilog=conversion_run.EXIT_CODES)(convert)
app.command("export-lora", epilog=conversion_run.EXIT_CODES)(export_lora)
for _verb in (merge, generate, write, explain, train, predict, train_predictor, compare, demo, ui):
    app.command(_verb.__name__.replace("_", "-"), epilog=reporting.exit_codes())(_verb)
app.add_typer(dataset_app, name="dataset")


def _show_version(requested: bool) -> None:
    if requested:
        from hnloader._version import __version__

        typer.echo(f"hnloader {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help=f"Show the tracebacks of errors, like {reporting.DEBUG}=1. Put it before the command: "
            "hnloader --debug inspect style.pt.",
        ),
    ] = False,
) -> None:
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
