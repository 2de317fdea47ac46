"""The report of a training: one HTML file that shows everything and needs nothing beside it."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hnloader.errors import HypernetworkError
from hnloader.files import replacing
from hnloader.images import OWN_PREVIEWS, read_image
from hnloader.training import html, schema
from hnloader.training.config import Config
from hnloader.training.dataset import Dataset, TrainingImage, open_image
from hnloader.training.state import State

if TYPE_CHECKING:
    from PIL.Image import Image

_THUMBNAIL = 128
_MOST_THUMBNAILS = 60


def write_report(
    path: Path, config: Config, state: State, dataset: Dataset, kept: list[TrainingImage], about: dict[str, Any]
) -> None:
    """Write the report.

    Args:
        kept: the held-out images.
        about: rows for the summary, such as why the training ended.

    Raises:
        HypernetworkError: it cannot be written.
    """
    body = [
        html.section("Summary", html.table(_summary(config, state, about))),
        html.section("Loss", _curves(state)),
        *_previews(path.parent / "previews"),
        html.section("Images", html.figures(_thumbnails(dataset, kept)), _problems(dataset)),
        html.section("Settings", f"<pre>{html.text(schema.write(config, comments=False))}</pre>"),
        html.section("Environment", html.table(list(environment().items()))),
    ]
    lead = f"{config.method}, {state.step:,} of {config.steps:,} steps on {len(dataset.images)} images"
    with replacing(path) as temporary:
        temporary.write_text(html.page(config.name, lead, body), encoding="utf-8")


def environment() -> dict[str, str]:
    """The versions and the hardware that the figures come from."""
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


def _summary(config: Config, state: State, about: dict[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("output", Path(config.output).name),
        ("steps", f"{state.step:,}"),
        ("time", f"{state.seconds:,.0f} s"),
    ]
    if state.loss is not None:
        rows.append(("training loss", f"{state.loss:.4g}"))
    if state.first is not None:
        rows.append(("loss at fixed noise before the first step", f"{state.first:.4g}"))
    if state.best is not None:
        rows.append(("lowest held-out loss", f"{state.best[0]:.4g} at step {state.best[1]:,}"))
    return [*rows, *about.items()]


def _curves(state: State) -> str:
    def line(key: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[key]) for entry in state.history if key in entry]

    losses = html.curves({"training": line("loss"), "held out": line("held_out")}, "steps")
    rates = html.curves({"learning rate": line("rate")}, "steps")
    return f"{losses}<details><summary>Learning rate</summary>{rates}</details>"


def _previews(folder: Path) -> Iterator[str]:
    tiled = folder / "previews.png"
    if not tiled.is_file():
        return
    with contextlib.suppress(HypernetworkError):
        yield html.section("Previews", html.image_tag(read_image(tiled, OWN_PREVIEWS).image, "previews over the steps"))


def _thumbnails(dataset: Dataset, kept: list[TrainingImage]) -> Iterator[tuple[Image, str]]:
    held_out = {image.digest for image in kept}
    for found in dataset.images[:_MOST_THUMBNAILS]:
        label = found.path.name + (" (held out)" if found.digest in held_out else "")
        label += f": {found.caption}" if found.caption else ""
        try:
            small = open_image(found.path, shortest=_THUMBNAIL).image
        except HypernetworkError:
            continue  # removed since the training began
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        yield small.convert("RGB"), label


def _problems(dataset: Dataset) -> str:
    more = len(dataset.images) - _MOST_THUMBNAILS
    note = f"<p>and {more} more</p>" if more > 0 else ""
    rows = [("left out" if problem.fatal else "note", problem.path.name, problem.what) for problem in dataset.problems]
    return note + (html.table(rows) if rows else "")
