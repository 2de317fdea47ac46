"""`hnloader train-predictor`: train a network that predicts hypernetworks from images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import DeviceOption
from hnloader.cli.terminal import stderr, stdout
from hnloader.cli.train_command import (
    EXIT_INTERRUPTED,
    ConfigArgument,
    SetOption,
    parse_settings,
    print_result,
    print_status,
    run_training,
)

__all__ = ["train_predictor"]


@reports_errors
def train_predictor(
    config: ConfigArgument = None,
    init: Annotated[
        bool, typer.Option("--init", help="Print a commented configuration with every setting, and exit.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Diffusers folder, checkpoint or Hub name.", show_default=False)
    ] = None,
    styles: Annotated[
        str | None, typer.Option(help="Folder with one folder of images for each style.", show_default=False)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File to write, such as predictor.safetensors.", show_default=False),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of training steps.", show_default=False)] = None,
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the newest saved state.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard an earlier training run of this output and start over.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Print the progress of the training run of this output, and exit.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a network that predicts hypernetworks from images, for `hnloader predict`.

    Ctrl-C saves everything; --resume continues exactly where it stopped.
    """
    from hnloader.prediction.predictor_config import predictor_template, read_predictor_config
    from hnloader.prediction.predictor_training import prepare_predictor
    from hnloader.training.status import status_file
    from hnloader.training.stop_signals import stop_signals

    if init:
        stdout().print(Text(predictor_template().rstrip()), soft_wrap=True)
        return
    given = {"model": model, "styles": styles, "output": output, "steps": steps}
    overrides = {key: value for key, value in given.items() if value is not None} | parse_settings(set_ or [])
    settings = read_predictor_config(config, overrides)
    if status:
        print_status(settings.output)
        return
    settings.check()
    with stop_signals(), status_file(Path(settings.output), settings.steps) as writer:
        with stderr().status("Reading the styles and loading the model"):
            trainer = prepare_predictor(settings, resume=resume, restart=restart, device=device)
        result = run_training(trainer, writer)
    print_result(result)
    if result.reason == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)
