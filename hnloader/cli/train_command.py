"""`hnloader train`: a hypernetwork or an embedding from a folder of images."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.terminal import clean, fields, note, size_text, stderr, stdout

if TYPE_CHECKING:
    from hnloader.training.config import Config
    from hnloader.training.loop import Event, Result
    from hnloader.training.status import Keeper

EXIT_INTERRUPTED = 130
# Without a terminal a line is printed now and then instead of a bar.
_LINE_EVERY = 30.0


@reports_errors
def train(
    config: Annotated[Path | None, typer.Argument(help="The YAML file with the settings.", show_default=False)] = None,
    init: Annotated[
        bool, typer.Option("--init", help="Print a commented configuration with every setting, and stop.")
    ] = False,
    preset: Annotated[str, typer.Option(help="Defaults for a `style` or a `subject`.")] = "style",
    model: Annotated[str | None, typer.Option(help="Setting `model`.", show_default=False)] = None,
    images: Annotated[str | None, typer.Option(help="Setting `images`.", show_default=False)] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Setting `output`.", show_default=False)] = None,
    method: Annotated[str | None, typer.Option(help="hypernetwork or embedding.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Setting `steps`.", show_default=False)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting: --set data.flip=false --set learning_rate=5e-5.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest saved state.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew although there is a saved state.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Say how far the training of this output is, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Train a hypernetwork or a textual-inversion embedding on one's own images.

    Ctrl-C saves everything; --resume goes on exactly where it stopped.
    """
    from hnloader.training import prepare, read_config
    from hnloader.training.config import template

    if init:
        stdout().print(Text(template(preset).rstrip()), soft_wrap=True)
        return
    given = {"model": model, "images": images, "output": output, "method": method, "steps": steps}
    overrides: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    overrides |= settings_of(set_ or [])
    chosen = read_config(config, overrides, preset)
    if status:
        _show_status(chosen)
        return
    with _terminable(), _keeper(chosen) as keeper:
        with stderr().status("Reading the images and loading the model"):
            training = prepare(chosen, resume=resume, restart=restart, device=device)
        result = _run(training, keeper)
    _show(result)
    if result.why == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


def settings_of(given: list[str]) -> dict[str, Any]:
    """The settings of `--set key=value`; values are read as YAML."""
    from hnloader.errors import ConfigError
    from hnloader.training.schema import read_yaml

    settings: dict[str, Any] = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise typer.BadParameter(f"{each!r}: key=value was expected", param_hint="--set")
        try:
            settings[key.strip()] = read_yaml(value)
        except ConfigError as error:
            raise typer.BadParameter(f"{each!r}: the value is no YAML", param_hint="--set") from error
    return settings


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Before the first step, too, SIGTERM ends it as Ctrl-C does: with a word and an exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _keeper(config: Config) -> contextlib.AbstractContextManager[Keeper | None]:
    """Keeps the file that says how far the training is; of several processes, the first one does."""
    from hnloader.training.status import kept

    config.check()
    if os.environ.get("RANK", "0") != "0":
        return contextlib.nullcontext()
    return kept(Path(config.output), config.steps)


def _run(training: Any, keeper: Keeper | None) -> Result:
    console = stderr()
    columns = (
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[about]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=training.config.steps, completed=training.state.step, about="")
        lines = _lines()

        def report(event: Event) -> None:
            if event.message:
                note(event.message)
            if keeper is not None:
                keeper.tell(training, event)
            bar.update(task, completed=event.step, about=_about(event))
            if not console.is_terminal:
                lines(event)

        result: Result = training.run(report)
    if keeper is not None:
        keeper.end(result.why)
    return result


def _show_status(config: Config) -> None:
    from hnloader.errors import ConfigError
    from hnloader.training.loop import folder_of
    from hnloader.training.status import read_status

    found = read_status(folder_of(Path(config.output))) if config.output else None
    if found is None:
        raise ConfigError(
            f"there is no training of {config.output or 'no output'}: none was begun, or its folder is gone"
        )
    rows: list[tuple[str, str | Text]] = [("training", f"{found.phase}, step {found.step:,} of {found.steps:,}")]
    if found.loss is not None:
        rows.append(("loss", f"{found.loss:.4f}"))
    if found.best is not None:
        rows.append(("best", f"held-out loss {found.best[0]:.4f} at step {found.best[1]:,}"))
    if found.left is not None:
        rows.append(("left", f"about {found.left:,.0f} s"))
    if found.message:
        rows.append(("said", clean(found.message)))
    stdout().print(fields(rows))


def _about(event: Event) -> str:
    parts = [f"loss {event.loss:.4f}"]
    if event.held_out is not None:
        parts.append(f"held out {event.held_out:.4f}")
    return ", ".join([*parts, f"rate {event.rate:.2g}", memory_text()])


def _lines() -> Callable[[Event], None]:
    """Prints a line at the first step, every half minute, and at the last."""
    last = [0.0]

    def show(event: Event) -> None:
        now = time.monotonic()
        if event.step and (last[0] == 0.0 or now - last[0] >= _LINE_EVERY or event.step == event.steps):
            last[0] = now
            stderr().print(Text(f"step {event.step:,} of {event.steps:,}: {_about(event)}"))

    return show


def memory_text() -> str:
    """Peak memory of the process: of the graphics card where one is used, else resident."""
    import sys

    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return size_text(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size_text(peak if sys.platform == "darwin" else peak * 1024)


def _show(result: Result) -> None:
    rows: list[tuple[str, str | Text]] = [("ended", f"{result.why}, after {result.step:,} steps")]
    if result.best is not None:
        loss, step, path = result.best
        before = "" if result.first is None else f" (before the first {result.first:.4f})"
        rows.append(("best", f"held-out loss {loss:.4f} at step {step:,}{before}: {clean(path)}"))
    if result.why == "interrupted":
        rows.append(("go on", "the same command with --resume"))
    stderr().print(fields(rows))
    stdout().print(Text(clean(result.output.resolve())), soft_wrap=True)
