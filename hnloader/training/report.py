"""The HTML report of a training run: one self-contained file."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from hnloader.files import replacing
from hnloader.training import html, schema
from hnloader.training.config import Config
from hnloader.training.state import State
from hnloader.training.task import Task
from hnloader.units import counted


def write_report(path: Path, config: Config, state: State, task: Task, rows: Mapping[str, object]) -> None:
    """Write the report, or raise HypernetworkError.

    Args:
        path: The HTML file.
        config: The settings.
        state: The progress.
        task: The data and the previews.
        rows: More rows of the summary.
    """
    body = [
        html.section("Summary", html.table([*_summary(config, state), *rows.items()])),
        html.section("Loss", _curves(state)),
        *task.report(path.parent / "previews"),
        html.section("Settings", f"<pre>{html.text(schema.write(config, comments=False))}</pre>"),
        html.section("Environment", html.table(environment().items())),
    ]
    lead = f"{config.method}, {state.step:,} of {counted(config.steps, 'step')} on {task.amount}"
    with replacing(path) as temporary:
        temporary.write_text(html.page(config.name, lead, body), encoding="utf-8")


def environment() -> dict[str, str]:
    """Return the versions and the hardware."""
    import diffusers
    import transformers

    from hnloader._version import __version__

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "hnloader": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
    }


def _summary(config: Config, state: State) -> Iterator[tuple[str, object]]:
    yield "output", Path(config.output).name
    yield "steps", f"{state.step:,}"
    yield "time", f"{state.seconds:,.0f} s"
    if state.loss is not None:
        yield "training loss", f"{state.loss:.4g}"
    if state.initial_loss is not None:
        yield "loss before the first step", f"{state.initial_loss:.4g}"
    if state.best is not None:
        yield "lowest validation loss", f"{state.best[0]:.4g} at step {state.best[1]:,}"


def loss_curves(history: Sequence[Mapping[str, float]]) -> str:
    """Return the curves of the training loss and the validation loss."""
    keys = {"training": "loss", "validation": "validation_loss"}
    return html.curves({name: _points(history, key) for name, key in keys.items()}, "steps")


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def _curves(state: State) -> str:
    rates = html.curves({"learning rate": _points(state.history, "learning_rate")}, "steps")
    return f"{loss_curves(state.history)}<details><summary>Learning rate</summary>{rates}</details>"
