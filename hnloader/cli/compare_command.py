"""`hnloader compare`: compare a hypernetwork, an embedding and a LoRA trained on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hnloader.cli.reporting import reports_errors
from hnloader.cli.shared_options import DeviceOption
from hnloader.cli.terminal import clean, note, progress_bar, stderr, stdout
from hnloader.cli.train_command import ConfigArgument, PresetOption, SetOption, parse_settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.training import Event
    from hnloader.training.method_comparison import MakeMetrics, MethodComparison
    from hnloader.training.metrics import Metric

__all__ = ["compare"]

_METHODS = ("hypernetwork", "embedding", "lora")


@reports_errors
def compare(
    config: ConfigArgument = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Prompt to compare; repeatable.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="File with one prompt per line.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("comparison"),
    seeds: Annotated[int, typer.Option(min=1, max=64, help="Images per prompt.")] = 2,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Seconds to train each method, instead of `steps`.", show_default=False)
    ] = None,
    hypernetwork: Annotated[
        Path | None, typer.Option(help="Use this hypernetwork instead of training one.", show_default=False)
    ] = None,
    embedding: Annotated[
        Path | None, typer.Option(help="Use this embedding instead of training one.", show_default=False)
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(help="Use this LoRA instead of training one.", show_default=False)
    ] = None,
    methods: Annotated[str, typer.Option(help="Methods to compare, separated by commas.")] = ",".join(_METHODS),
    one_rate: Annotated[
        bool, typer.Option("--one-rate", help="Train each method once, instead of with three learning rates.")
    ] = False,
    equal_parameters: Annotated[
        bool,
        typer.Option("--equal-parameters", help="Choose the LoRA's rank so that it is as large as the hypernetwork."),
    ] = False,
    clip: Annotated[
        str | None, typer.Option(help="Add a CLIP model (folder or Hub name) as a metric.", show_default=False)
    ] = None,
    lpips: Annotated[bool, typer.Option("--lpips", help="Add LPIPS as a metric (requires lpips).")] = False,
    preset: PresetOption = "style",
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a hypernetwork, an embedding and a LoRA on the same images and compare them.

    Each is trained with a third of its learning rate, with that, and with three times that. The run with the lowest
    validation loss counts. Finished training runs are kept; an interrupted comparison resumes.
    """
    from hnloader.training import read_config
    from hnloader.training.method_comparison import RATE_FACTORS, Plan, compare_methods, write_comparison

    finished: dict[Any, Path | None] = {"hypernetwork": hypernetwork, "embedding": embedding, "lora": lora}
    plan = Plan(
        read_config(config, parse_settings(set_ or []), preset),
        [*(prompt or []), *_lines(prompts)],
        seeds=range(1, seeds + 1),
        methods=[each.strip() for each in methods.split(",") if each.strip()],  # type: ignore[misc]
        rate_factors=(1.0,) if one_rate else RATE_FACTORS,
        equal_parameters=equal_parameters,
        seconds=seconds,
        finished={method: path for method, path in finished.items() if path is not None},
        device=device,
    )
    metrics = _make_metrics(clip, lpips)
    with progress_bar("Training") as show:

        def callback(method: str, event: Event) -> None:
            if event.message:
                note(event.message)
            show(event.step, event.steps, f"Training the {method}")

        found = compare_methods(plan, metrics, callback)
    paths = write_comparison(found, out, plan.config.name)
    stdout().print(_table(found))
    for line in found.conclusion:
        stderr().print(Text(line), soft_wrap=True)
    for path in [*paths, *(result.path for result in found.results)]:
        stdout().print(Text(clean(path.resolve())), soft_wrap=True)


def _lines(path: Path | None) -> list[str]:
    from hnloader.errors import ConfigError
    from hnloader.files import read_regular

    if path is None:
        return []
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "the text is not UTF-8"
        raise ConfigError(f"{path}: cannot read the prompts ({reason}). Save them as UTF-8, one per line.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _make_metrics(clip: str | None, lpips: bool) -> MakeMetrics:
    from hnloader.training.metrics import ClipMetric, LpipsMetric

    # Now, so that a missing package is reported before the training.
    first: list[Metric] = [LpipsMetric()] if lpips else []

    def make(training_images: list[Image]) -> list[Metric]:
        return [*first, *([ClipMetric(clip, training_images)] if clip else [])]

    return make


def _table(found: MethodComparison) -> Table:
    from hnloader.training.method_comparison import comparison_table

    header, rows = comparison_table(found)
    table = Table(header[0], box=None, header_style="bold", pad_edge=False)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    return table
