"""Compare an embedding and a hypernetwork that are trained on the same images with the same budget."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hnloader.errors import ConfigError
from hnloader.files import make_folder, replacing
from hnloader.grids import labeled_grid
from hnloader.training import html
from hnloader.training.config import Config, Method
from hnloader.training.dataset import open_image
from hnloader.training.events import Event
from hnloader.training.metrics import Metric, PaletteMetric, pixel_drift
from hnloader.training.preparation import prepare
from hnloader.training.previews import generate_image
from hnloader.training.report import environment
from hnloader.training.trainer import Trainer

if TYPE_CHECKING:
    from PIL.Image import Image

METHODS: tuple[Method, ...] = ("hypernetwork", "embedding")
# Prompts that are unrelated to any training, for all models.
UNRELATED = ("a photograph of a street", "a bowl of fruit on a table", "a person reading", "mountains and a lake")
_STEADY = "changes unrelated prompts less"

MakeMetrics = Callable[[list["Image"]], list[Metric]]
Callback = Callable[[str, Event], None]


@dataclass(frozen=True)
class Plan:
    """The settings of a comparison.

    Attributes:
        config: The settings. `output` gives the names of the files (style-hypernetwork.pt, style-embedding.pt), and
            `method` is ignored. An interrupted training run resumes.
        prompts: Generated with both methods. The token of the embedding goes first, or in place of {name}.
        unrelated: Prompts whose images should not change.
        seeds: The seeds of each prompt.
        seconds: Train each method for this time instead of `config.steps`.
        finished: Files to use instead of training.
        device: "auto", "cpu", "cuda", ...
    """

    config: Config
    prompts: Sequence[str]
    unrelated: Sequence[str] = UNRELATED
    seeds: Sequence[int] = (1, 2)
    seconds: float | None = None
    finished: Mapping[Method, Path] = field(default_factory=dict)
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("Found no prompts to compare. Use --prompts FILE (one per line) or --prompt TEXT.")


@dataclass
class MethodResult:
    """The result of one method.

    Attributes:
        method: "hypernetwork" or "embedding".
        path: The file.
        steps: Steps of the training; None for a finished file.
        seconds: Training time; None for a finished file.
        memory: Peak memory of the training in bytes, on a GPU.
        validation_loss: The validation loss.
        metrics: Kind and name of a metric -> number.
        drift: How much unrelated prompts changed, 0 to 1.
    """

    method: Method
    path: Path
    steps: int | None = None
    seconds: float | None = None
    memory: int | None = None
    validation_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    drift: float | None = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class MethodComparison:
    """The result of a comparison.

    Attributes:
        without: The metrics of the model alone.
        results: The hypernetwork, then the embedding.
        conclusion: Sentences that follow from the numbers.
        grid: Prompts by methods, with the first seed.
    """

    without: dict[str, float]
    results: tuple[MethodResult, ...]
    conclusion: tuple[str, ...]
    grid: Image


def compare_methods(plan: Plan, make_metrics: MakeMetrics, callback: Callback | None = None) -> MethodComparison:
    """Train both methods (or load finished files), generate the same prompts from the same seeds, and compare.

    Args:
        plan: The settings.
        make_metrics: Makes more metrics from the training images.
        callback: Called with the method and the event of each step.

    Raises:
        HypernetworkError: As `hnloader.train`, or a finished file cannot be loaded.
    """
    runs = [_run(method, plan, callback) for method in METHODS]
    prompts, unrelated, seeds = plan.prompts, plan.unrelated, plan.seeds
    trainer = runs[0][1]
    without = _generate(trainer, prompts, plan, trained=False)
    training_images = [open_image(image.path).image.convert("RGB") for image in trainer.dataset.images]
    metrics: list[Metric] = [PaletteMetric(training_images, without), *make_metrics(training_images)]
    before = _generate(trainer, unrelated, plan, trained=False) if unrelated else []
    images = {"without": without}
    asked = [_plain(prompt) for prompt in prompts for _ in seeds]
    for result, trainer in runs:
        images[result.method] = shown = _generate(trainer, prompts, plan, trained=True)
        result.metrics = _measure(metrics, shown, asked)
        if unrelated:
            after = _generate(trainer, unrelated, plan, trained=True, placeholder=False)
            result.drift = pixel_drift(after, before)
            result.metrics |= _measure_drift(metrics, after, before)
    grid = labeled_grid(
        [[images[way][row * len(seeds)] for way in images] for row in range(len(prompts))],
        columns=list(images),
        rows=[_plain(prompt) for prompt in prompts],
    )
    results = tuple(result for result, _ in runs)
    unchanged = {key: 0.0 for key in results[0].metrics if key.startswith("drift (")}
    own = _measure(metrics, without, asked) | unchanged
    return MethodComparison(own, results, tuple(_conclusion(*results)), grid)


def _run(method: Method, plan: Plan, callback: Callback | None) -> tuple[MethodResult, Trainer]:
    """Train a method, or load its finished file."""
    config, finished = plan.config, plan.finished.get(method)
    if finished is None:
        config.check()
    output = Path(config.output)
    path = finished or output.with_name(f"{output.stem}-{method}{output.suffix}")
    start_from = str(path) if finished else ""
    config = dataclasses.replace(config, method=method, output=str(path), start_from=start_from)
    embedding = dataclasses.replace(config.embedding, placeholder_token=config.placeholder_token)
    config = dataclasses.replace(config, embedding=embedding)
    trainer = prepare(config, resume=finished is None, dry_run=finished is not None, device=plan.device)
    result = MethodResult(method, path)
    if finished is None:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        _train(trainer, plan.seconds, method, callback)
        result.steps, result.seconds = trainer.state.step, trainer.state.seconds
        result.memory = torch.cuda.max_memory_allocated() if cuda else None
    if trainer.validator.images:
        result.validation_loss = trainer.validator.loss()
    return result, trainer


def _train(trainer: Trainer, seconds: float | None, method: Method, callback: Callback | None) -> None:
    def out_of_time() -> bool:
        return seconds is not None and trainer.state.seconds >= seconds

    def watch(event: Event) -> None:
        if callback is not None:
            callback(method, event)
        if out_of_time():
            trainer.stop()

    if trainer.state.step < trainer.config.steps and not out_of_time():
        result = trainer.run(watch)
        if result.reason == "interrupted" and seconds is None:
            raise KeyboardInterrupt


def _generate(
    trainer: Trainer, prompts: Sequence[str], plan: Plan, *, trained: bool, placeholder: bool = True
) -> list[Image]:
    """Return one image per prompt and seed, the seeds of a prompt in a row."""
    pipeline, settings = trainer.denoiser.pipeline, plan.config.previews
    pipeline.set_progress_bar_config(disable=True)
    token = trainer.config.placeholder_token if trained and placeholder and trainer.config.method == "embedding" else ""
    images: list[Image] = []
    for prompt in prompts:
        for seed in plan.seeds:
            applied = trainer.applied() if trained else contextlib.nullcontext()
            with torch.no_grad(), trainer.denoiser.loaded(), applied:
                images.append(generate_image(pipeline, _with_token(prompt, token), seed, settings))
    return images


def _with_token(prompt: str, token: str) -> str:
    """Put a token in place of {name}, else first, where the text encoder always reads it."""
    if "{name}" in prompt:
        return prompt.replace("{name}", token)
    return f"{token}, {prompt}" if token else prompt


def _plain(prompt: str) -> str:
    return " ".join(prompt.replace("{name}", "").split())


def _measure(metrics: Sequence[Metric], images: list[Image], prompts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in metrics:
        for kind, value in (("style", metric.style(images)), ("prompt", metric.adherence(images, prompts))):
            if value is not None:
                found[f"{kind} ({metric.name})"] = value
    return found


def _measure_drift(metrics: Sequence[Metric], images: list[Image], before: list[Image]) -> dict[str, float]:
    found = ((metric.name, metric.drift(images, before)) for metric in metrics)
    return {f"drift ({name})": value for name, value in found if value is not None}


def _conclusion(one: MethodResult, two: MethodResult) -> Iterator[str]:
    """Return what follows from the numbers."""
    for kind, verb in (
        ("style", "shows more of the style"),
        ("prompt", "follows the prompt better"),
        ("drift", _STEADY),
    ):
        for key in one.metrics:
            if key.startswith(f"{kind} ("):
                values = one.metrics[key], two.metrics[key]
                yield _verdict(verb, key, values, higher_is_better=kind != "drift")
    if one.validation_loss is not None and two.validation_loss is not None:
        yield _verdict("has the lower validation loss", "loss", (one.validation_loss, two.validation_loss))
    if one.drift is not None and two.drift is not None:
        yield _verdict(_STEADY, "drift", (one.drift, two.drift))
    smaller, larger = sorted((one, two), key=lambda each: each.size)
    yield f"The {smaller.method} file is {larger.size / smaller.size:,.0f} times smaller."


def _verdict(verb: str, key: str, values: tuple[float, float], *, higher_is_better: bool = False) -> str:
    a, b = values
    numbers = f"({key}: {METHODS[0]} {a:.3g}, {METHODS[1]} {b:.3g})"
    if abs(a - b) <= 0.02 * max(abs(a), abs(b), 1e-9):
        return f"Neither {verb} {numbers}."
    return f"The {METHODS[0] if (a > b) == higher_is_better else METHODS[1]} {verb} {numbers}."


# -- the report


def write_comparison(comparison: MethodComparison, folder: Path, title: str) -> tuple[Path, Path, Path]:
    """Write report.html, comparison.json and grid.png into a folder, or raise HypernetworkError."""
    make_folder(folder)
    paths = folder / "report.html", folder / "comparison.json", folder / "grid.png"
    header, rows = comparison_table(comparison)
    body = [
        html.section("Conclusion", "".join(f"<p>{html.text(line)}</p>" for line in comparison.conclusion)),
        html.section("Metrics", html.table(rows, header)),
        html.section("Images", html.image_tag(comparison.grid, "prompts by methods")),
        html.section("Environment", html.table(environment().items())),
    ]
    found = {
        "without": comparison.without,
        "results": [
            {**dataclasses.asdict(each), "path": each.path.name, "size": each.size} for each in comparison.results
        ],
        "conclusion": comparison.conclusion,
    }
    with replacing(paths[0]) as temporary:
        temporary.write_text(html.page(title, "hypernetwork and embedding side by side", body), encoding="utf-8")
    with replacing(paths[1]) as temporary:
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    with replacing(paths[2]) as temporary:
        comparison.grid.save(temporary, format="PNG")
    return paths


def comparison_table(comparison: MethodComparison) -> tuple[list[str], list[list[object]]]:
    """Return the header and the rows of the numbers; "" for a missing one."""
    results = comparison.results
    rows: list[list[object]] = [
        [key, value, *(each.metrics.get(key, "") for each in results)] for key, value in comparison.without.items()
    ]
    optional: dict[str, list[object]] = {
        "drift of unrelated prompts": [each.drift for each in results],
        "validation loss": [each.validation_loss for each in results],
        "steps": [each.steps for each in results],
        "training time, s": [each.seconds for each in results],
        "peak memory, MB": [None if each.memory is None else each.memory / 1e6 for each in results],
        "file size, kB": [each.size / 1e3 for each in results],
    }
    for name, values in optional.items():
        if any(value is not None for value in values):
            rows.append([name, "", *("" if value is None else value for value in values)])
    return ["", "without", *(each.method for each in results)], rows
