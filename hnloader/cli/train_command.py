"""`hnloader train`: train a hypernetwork, an embedding or a LoRA on a folder of images or texts."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import DeviceOption, refuse
from hnloader.cli.terminal import clean, fields, note, progress_bar, stderr, stdout
from hnloader.units import counted, size_text

if TYPE_CHECKING:
    from hnloader.training import Config, Event, Result
    from hnloader.training.status import StatusWriter
    from hnloader.training.trainer import Trainer

__all__ = [
    "ConfigArgument",
    "InitOption",
    "PresetOption",
    "RestartOption",
    "ResumeOption",
    "SetOption",
    "StatusOption",
    "StepsOption",
    "parse_settings",
    "print_status",
    "run_training",
    "train",
]

ConfigArgument = Annotated[Path | None, typer.Argument(help="YAML file with the settings.", show_default=False)]
PresetOption = Annotated[str, typer.Option("--preset", help="Defaults for a `style` or a `subject`.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Set anything: --set data.random_flip=false --set learning_rate=5e-5.", show_default=False
    ),
]
InitOption = Annotated[
    bool, typer.Option("--init", help="Print a commented configuration with every setting, and exit.")
]
StepsOption = Annotated[int | None, typer.Option(help="Number of training steps.", show_default=False)]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Resume from the newest saved state.")]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Discard an earlier training run of this output and start over.")
]
StatusOption = Annotated[
    bool, typer.Option("--status", help="Print the progress of the training run of this output, and exit.")
]

_EXIT_INTERRUPTED = 130
# Seconds between two lines of progress without a terminal.
_LINE_INTERVAL = 30.0


@reports_errors
def train(
    config: ConfigArgument = None,
    init: InitOption = False,
    preset: PresetOption = "style",
    model: Annotated[
        str | None,
        typer.Option(
            help="Diffusers folder, checkpoint or Hub name; for texts a folder of transformers.", show_default=False
        ),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder with the training images.", show_default=False)] = None,
    texts: Annotated[
        str | None,
        typer.Option(help="Folder with the training texts of a language model, .txt or .jsonl.", show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="File to write, such as style.pt or style.safetensors.", show_default=False
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="hypernetwork, embedding or lora.", show_default=False)] = None,
    steps: StepsOption = None,
    start: Annotated[
        str | None,
        typer.Option(help="File to train further, or `predict` to predict one from the images.", show_default=False),
    ] = None,
    set_: SetOption = None,
    resume: ResumeOption = False,
    restart: RestartOption = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Try several learning rates for a minute, print the best, and exit.")
    ] = False,
    status: StatusOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a hypernetwork, a textual-inversion embedding or a LoRA on your own images or texts.

    Ctrl-C saves everything; --resume continues exactly where it stopped.
    """
    from hnloader.training import read_config
    from hnloader.training.config import template

    if init:
        stdout().print(Text(template(preset).rstrip()), soft_wrap=True)
        return
    given = {"model": model, "images": images, "texts": texts, "output": output, "method": method, "steps": steps}
    given["start_from"] = start
    overrides = {key: value for key, value in given.items() if value is not None} | parse_settings(set_ or [])
    settings = read_config(config, overrides, preset)
    if status:
        print_status(settings.output)
        return
    if find_lr:
        _print_rates(settings, device)
        return
    run_training(settings, resume=resume, restart=restart, device=device)


def run_training(config: Config, *, resume: bool, restart: bool, device: str) -> None:
    """Train with a progress bar, or with lines without a terminal, and print the result."""
    from hnloader.training import prepare
    from hnloader.training.stop_signals import stop_signals

    with stop_signals(), _status_file(config) as writer:
        with stderr().status("Reading the data and loading the model"):
            trainer = prepare(config, resume=resume, restart=restart, device=device)
        result = trainer.run() if writer is None else _run(trainer, writer)
    if writer is not None:
        _print_result(result)
    code = _EXIT_INTERRUPTED if result.reason == "interrupted" else 0
    _leave_group(code)
    if code:
        raise typer.Exit(code)


def parse_settings(given: list[str]) -> dict[str, Any]:
    """Return the settings of `--set key=value`; values are YAML."""
    from hnloader.errors import ConfigError
    from hnloader.training.schema import read_yaml

    settings: dict[str, Any] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            refuse("--set", f"Expected key=value, got {each!r}.")
        try:
            settings[key.strip()] = read_yaml(value)
        except ConfigError as error:
            refuse("--set", f"{each!r}: {error}")
    return settings


def _status_file(config: Config) -> contextlib.AbstractContextManager[StatusWriter | None]:
    """Keep the status file; of several processes, only the first does, and prints."""
    from hnloader.training.status import status_file

    config.check()
    if os.environ.get("RANK", "0") != "0":
        return contextlib.nullcontext()
    return status_file(Path(config.output), config.steps)


def _leave_group(code: int) -> None:
    """Let all processes of a group exit together, and at once: threads of torch can abort a usual exit (SIGABRT)."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return
    distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(trainer: Trainer, writer: StatusWriter) -> Result:
    console = stderr()
    columns = (
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[about]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=trainer.config.steps, completed=trainer.state.step, about="", left="")
        print_line = _line_printer()

        def show(event: Event) -> None:
            if event.message:
                note(event.message)
            writer.update(trainer.state, event)
            left = "" if event.seconds_left is None else f"{timedelta(seconds=round(event.seconds_left))} left"
            bar.update(task, completed=event.step, about=_summary(event), left=left)
            if not console.is_terminal:
                print_line(event)

        result = trainer.run(show)
    writer.end(result.reason)
    return result


def print_status(output: str) -> None:
    """Print the progress of the training run of an output."""
    from hnloader.errors import ConfigError
    from hnloader.training.run_folder import run_folder
    from hnloader.training.status import read_status

    status = read_status(run_folder(Path(output))) if output else None
    if status is None:
        raise ConfigError(f"{output!r}: found no training run of this output. Name the output of one with --output.")
    rows: list[tuple[str, str | Text]] = [("training", f"{status.phase}, step {status.step:,} of {status.steps:,}")]
    if status.loss is not None:
        rows.append(("loss", f"{status.loss:.4f}"))
    if status.best is not None:
        rows.append(("best", f"validation loss {status.best[0]:.4f} at step {status.best[1]:,}"))
    if status.seconds_left is not None:
        rows.append(("left", f"about {status.seconds_left:,.0f} s"))
    if status.message:
        rows.append(("message", clean(status.message)))
    stdout().print(fields(rows))


def _print_rates(config: Config, device: str) -> None:
    from hnloader.training.rate_search import find_learning_rate

    with progress_bar("Learning rates") as show:
        found = find_learning_rate(config, device=device, callback=lambda done, total: show(done, total, "Trying"))
    table = Table("learning rate", f"loss after {found.steps} steps", box=None, header_style="bold", pad_edge=False)
    table.add_row("none", f"{found.initial_loss:.4f}")
    for each in found.tried:
        mark = "  lowest" if each == found.best else ""
        table.add_row(f"{each.rate:.2g}", f"{each.loss:.4f}{mark}" if math.isfinite(each.loss) else "diverged")
    stdout().print(table)
    stderr().print(Text(found.conclusion))
    stdout().print(Text(clean(found.path.resolve())), soft_wrap=True)


def _summary(event: Event) -> str:
    parts = [f"loss {event.loss:.4f}"]
    if event.validation_loss is not None:
        parts.append(f"validation {event.validation_loss:.4f}")
    return ", ".join([*parts, f"learning rate {event.learning_rate:.2g}", _memory_text()])


def _line_printer() -> Callable[[Event], None]:
    """Return a function that prints a line at the first step, every half minute, and at the last step."""
    last = 0.0

    def show(event: Event) -> None:
        nonlocal last
        now = time.monotonic()
        if event.step and (last == 0.0 or now - last >= _LINE_INTERVAL or event.step == event.steps):
            last = now
            stderr().print(Text(f"step {event.step:,} of {event.steps:,}: {_summary(event)}"))

    return show


def _memory_text() -> str:
    """Return the peak memory, of the GPU if it is used."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return size_text(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size_text(peak if sys.platform == "darwin" else peak * 1024)


def _print_result(result: Result) -> None:
    rows: list[tuple[str, str | Text]] = [("status", f"{result.reason}, after {counted(result.step, 'step')}")]
    if result.best is not None:
        loss, step, path = result.best
        first = "" if result.initial_loss is None else f" ({result.initial_loss:.4f} before the first step)"
        rows.append(("best", f"validation loss {loss:.4f} at step {step:,}{first}: {clean(path)}"))
    if result.reason == "interrupted":
        rows.append(("resume", "the same command with --resume"))
    stderr().print(fields(rows))
    stdout().print(Text(clean(result.output.resolve())), soft_wrap=True)
