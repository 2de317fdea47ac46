"""`hnloader train-predictor`: train a network that predicts hypernetworks from images or texts."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import DeviceOption
from hnloader.cli.terminal import stdout
from hnloader.cli.train_command import (
    ConfigArgument,
    InitOption,
    RestartOption,
    ResumeOption,
    SetOption,
    StatusOption,
    StepsOption,
    parse_settings,
    print_status,
    run_training,
)

__all__ = ["train_predictor"]

_PRESET = "predictor"


@reports_errors
def train_predictor(
    config: ConfigArgument = None,
    init: InitOption = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Diffusers folder, checkpoint or Hub name; for texts a folder of transformers.", show_default=False
        ),
    ] = None,
    styles: Annotated[
        str | None, typer.Option(help="Folder with one folder of images or texts for each style.", show_default=False)
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File to write, such as predictor.safetensors.", show_default=False),
    ] = None,
    steps: StepsOption = None,
    set_: SetOption = None,
    resume: ResumeOption = False,
    start: Annotated[str | None, typer.Option(help="A predictor to train further.", show_default=False)] = None,
    restart: RestartOption = False,
    status: StatusOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a network that predicts hypernetworks from images or texts, for `hnloader predict`.

    Ctrl-C saves everything; --resume continues exactly where it stopped.
    """
    from hnloader.training import read_config
    from hnloader.training.config import template

    if init:
        stdout().print(Text(template(_PRESET).rstrip()), soft_wrap=True)
        return
    given = {"model": model, "styles": styles, "output": output, "steps": steps, "start_from": start}
    overrides = {key: value for key, value in given.items() if value is not None} | parse_settings(set_ or [])
    settings = read_config(config, overrides, _PRESET)
    if status:
        print_status(settings.output)
        return
    run_training(settings, resume=resume, restart=restart, device=device)
