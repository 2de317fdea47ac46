"""Compare a hypernetwork, an embedding and a LoRA that are trained on the same images with the same budget."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hnloader.errors import ConfigError
from hnloader.files import make_folder, replacing
from hnloader.grids import labeled_grid
from hnloader.training import html
from hnloader.training.config import Config, Method
from hnloader.training.dataset import open_image
from hnloader.training.events import Event
from hnloader.training.image_task import ImageTask
from hnloader.training.lora_adapter import target_names
from hnloader.training.metrics import Metric, PaletteMetric, pixel_drift
from hnloader.training.preparation import prepare
from hnloader.training.previews import generate_image
from hnloader.training.report import environment
from hnloader.training.trainer import Trainer

if TYPE_CHECKING:
    from PIL.Image import Image

METHODS: tuple[Method, ...] = ("hypernetwork", "embedding", "lora")
# The best of these multiples of the learning rate counts, since each method needs another one.
RATE_FACTORS = (1 / 3, 1.0, 3.0)
# Prompts that are unrelated to any training, for all models.
UNRELATED = ("a photograph of a street", "a bowl of fruit on a table", "a person reading", "mountains and a lake")
_STEADY = "changes unrelated prompts least"

MakeMetrics = Callable[[list["Image"]], list[Metric]]
Callback = Callable[[str, Event], None]


@dataclass(frozen=True)
class Plan:
    """The settings of a comparison.

    Attributes:
        config: The settings. `output` gives the names of the files (style-hypernetwork.pt, style-embedding.pt,
            style-lora.safetensors), and `method` is ignored. An interrupted training run resumes.
        prompts: Generated with all methods. The token of the embedding goes first, or in place of {name}.
        unrelated: Prompts whose images should not change.
        seeds: The seeds of each prompt.
        methods: The methods to compare, at least two.
        rate_factors: Train each method with these multiples of its learning rate, and take the lowest validation loss.
        equal_parameters: Give the LoRA the rank with which it has about as many parameters as the hypernetwork.
        seconds: Train for this time instead of `config.steps`.
        finished: Files to use instead of training.
        device: "auto", "cpu", "cuda", ...
    """

    config: Config
    prompts: Sequence[str]
    unrelated: Sequence[str] = UNRELATED
    seeds: Sequence[int] = (1, 2)
    methods: Sequence[Method] = METHODS
    rate_factors: Sequence[float] = (1.0,)
    equal_parameters: bool = False
    seconds: float | None = None
    finished: Mapping[Method, Path] = field(default_factory=dict)
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.config.texts:
            raise ConfigError("Setting 'texts': methods are compared on images. Set images in place of texts.")
        if not self.prompts:
            raise ConfigError("Found no prompts to compare. Use --prompts FILE (one per line) or --prompt TEXT.")
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or len(set(self.methods)) < max(2, len(self.methods)):
            raise ConfigError(f"Methods: expected two or more of {', '.join(METHODS)}, got {', '.join(self.methods)}.")
        if self.equal_parameters and not {"hypernetwork", "lora"} <= set(self.methods):
            raise ConfigError("Equal parameters: expected the methods hypernetwork and lora. Add them.")


@dataclass
class MethodResult:
    """The result of one method.

    Attributes:
        method: "hypernetwork", "embedding" or "lora".
        path: The file.
        steps: Steps of the training; None for a finished file.
        seconds: Training time; None for a finished file.
        memory: Peak memory of the training in bytes, on a GPU.
        parameters: Number of trained values.
        learning_rate: The learning rate; None for a finished file.
        validation_loss: The validation loss.
        metrics: Kind and name of a metric -> number.
        drift: How much unrelated prompts changed, 0 to 1.
    """

    method: Method
    path: Path
    steps: int | None = None
    seconds: float | None = None
    memory: int | None = None
    parameters: int = 0
    learning_rate: str | None = None
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
        results: The result of each method.
        conclusion: Sentences that follow from the numbers.
        grid: Prompts by methods, with the first seed.
    """

    without: dict[str, float]
    results: tuple[MethodResult, ...]
    conclusion: tuple[str, ...]
    grid: Image


def compare_methods(plan: Plan, make_metrics: MakeMetrics, callback: Callback | None = None) -> MethodComparison:
    """Train all methods (or load finished files), generate the same prompts from the same seeds, and compare.

    Args:
        plan: The settings.
        make_metrics: Makes more metrics from the training images.
        callback: Called with the method and the event of each step.

    Raises:
        HypernetworkError: As `hnloader.train`, or a finished file cannot be loaded.
    """
    runs = _runs(plan, callback)
    prompts, unrelated, seeds = plan.prompts, plan.unrelated, plan.seeds
    trainer = runs[0][1]
    without = _generate(trainer, prompts, plan, trained=False)
    training_images = [open_image(image.path).image.convert("RGB") for image in _task(trainer).dataset.images]
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
    return MethodComparison(own, results, tuple(_conclusion(results)), grid)


def _runs(plan: Plan, callback: Callback | None) -> list[tuple[MethodResult, Trainer]]:
    runs: dict[Method, tuple[MethodResult, Trainer]] = {}
    # The hypernetwork first, since its size can determine the LoRA's.
    for method in sorted(plan.methods, key=METHODS.index):
        config = plan.config
        if method == "lora" and plan.equal_parameters:
            rank = _rank_of(runs["hypernetwork"][1])
            config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=rank))
        runs[method] = _best_run(method, dataclasses.replace(plan, config=config), callback)
    return [runs[method] for method in plan.methods]


def _rank_of(hypernetwork: Trainer) -> int:
    """Return the rank with which a LoRA has about as many parameters as a hypernetwork."""
    unet, targets = _task(hypernetwork).denoiser.unet, hypernetwork.config.lora.targets
    layers: list[Any] = [unet.get_submodule(name) for name in target_names(unet, targets)]
    per_rank = sum(layer.in_features + layer.out_features for layer in layers)
    return max(1, round(_count(hypernetwork) / int(per_rank)))


def _task(trainer: Trainer) -> ImageTask:
    assert isinstance(trainer.task, ImageTask)
    return trainer.task


def _count(trainer: Trainer) -> int:
    return sum(parameter.numel() for parameter in trainer.adapter.parameters)


def _best_run(method: Method, plan: Plan, callback: Callback | None) -> tuple[MethodResult, Trainer]:
    """Train a method with each learning rate, and return the run with the lowest validation loss."""
    finished, config = plan.finished.get(method), plan.config
    if finished is None:
        config.check()
    output = Path(config.output)
    suffix = ".safetensors" if method == "lora" else output.suffix
    path = finished or output.with_name(f"{output.stem}-{method}{suffix}")
    embedding = dataclasses.replace(config.embedding, placeholder_token=config.placeholder_token)
    start_from = str(finished or "")
    config = dataclasses.replace(config, method=method, output=str(path), start_from=start_from, embedding=embedding)
    if finished or len(plan.rate_factors) < 2:
        return _run(config, plan, callback)
    rates = _rates(prepare(config, dry_run=True, device=plan.device).config, plan.rate_factors)
    if not rates:
        return _run(config, plan, callback)
    best: tuple[MethodResult, Trainer] | None = None
    for rate in rates:
        # In separate folders: the name of the output is a word in captions.
        place = path.with_name(f"{path.stem}-rates") / f"{rate:.3g}" / path.name
        run = _run(dataclasses.replace(config, output=str(place), learning_rate=rate), plan, callback)
        if run[0].validation_loss is None:
            raise ConfigError(
                "Comparing learning rates requires validation images. Set data.validation_split, use five images or "
                "more, or give one learning rate."
            )
        if best is None or run[0].validation_loss < (best[0].validation_loss or 0.0):
            best = run
    assert best is not None
    return best


def _rates(config: Config, factors: Sequence[float]) -> list[float]:
    """Return the learning rates to try; none for a schedule of several rates."""
    try:
        rate = float(config.learning_rate_text)
    except ValueError:
        return []
    return [rate * factor for factor in factors]


def _run(config: Config, plan: Plan, callback: Callback | None) -> tuple[MethodResult, Trainer]:
    """Train with these settings, or load the finished file in `start_from`."""
    finished = bool(config.start_from)
    if not finished:
        config.check()
    trainer = prepare(config, resume=not finished, dry_run=finished, device=plan.device)
    result = MethodResult(config.method, Path(config.output), parameters=_count(trainer))
    if not finished:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        _train(trainer, plan.seconds, config.method, callback)
        result.steps, result.seconds = trainer.state.step, trainer.state.seconds
        result.memory = torch.cuda.max_memory_allocated() if cuda else None
        result.learning_rate = trainer.config.learning_rate_text
    if trainer.task.has_validation:
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
    denoiser, settings = _task(trainer).denoiser, plan.config.previews
    pipeline = denoiser.pipeline
    pipeline.set_progress_bar_config(disable=True)
    token = trainer.config.placeholder_token if trained and placeholder and trainer.config.method == "embedding" else ""
    images: list[Image] = []
    for prompt in prompts:
        for seed in plan.seeds:
            applied = trainer.applied() if trained else contextlib.nullcontext()
            with torch.no_grad(), denoiser.loaded(), applied:
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


def _conclusion(results: Sequence[MethodResult]) -> Iterator[str]:
    """Return what follows from the numbers."""
    for kind, claim, best in (
        ("style", "shows most of the style", max),
        ("prompt", "follows the prompt best", max),
        ("drift", _STEADY, min),
    ):
        for key in results[0].metrics:
            if key.startswith(f"{kind} ("):
                yield from _verdict(claim, key, {_named(each): each.metrics.get(key) for each in results}, best)
    losses = {_named(each): each.validation_loss for each in results}
    yield from _verdict("has the lowest validation loss", "loss", losses, min)
    yield from _verdict(_STEADY, "drift", {_named(each): each.drift for each in results}, min)
    smallest, *_, largest = sorted(results, key=lambda each: each.size)
    if (ratio := largest.size / smallest.size) >= 1.5:
        yield f"The {_named(smallest)} file is {ratio:,.0f} times smaller than the {_named(largest)} file."


def _verdict(
    claim: str, key: str, values: Mapping[str, float | None], best: Callable[[Iterable[float]], float]
) -> Iterator[str]:
    """Return which method has the best value, unless others are within 2 %; nothing if a value is missing."""
    known = {name: value for name, value in values.items() if value is not None}
    if len(known) < len(values):
        return
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in known.items())
    first = best(known.values())
    near = [f"the {name}" for name, value in known.items() if abs(value - first) <= 0.02 * abs(first) + 1e-9]
    if len(near) == 1:
        yield f"The {near[0].removeprefix('the ')} {claim} ({key}: {numbers})."
    else:
        yield f"No method alone {claim}: {' and '.join(near)} are within 2 % ({key}: {numbers})."


def _named(result: MethodResult) -> str:
    return "LoRA" if result.method == "lora" else result.method


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
        temporary.write_text(
            html.page(title, ", ".join(_named(each) for each in comparison.results), body), encoding="utf-8"
        )
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
        "trained values": [each.parameters for each in results],
        "learning rate": [each.learning_rate for each in results],
        "validation loss": [each.validation_loss for each in results],
        "steps": [each.steps for each in results],
        "training time, s": [each.seconds for each in results],
        "peak memory, MB": [None if each.memory is None else each.memory / 1e6 for each in results],
        "file size, kB": [each.size / 1e3 for each in results],
    }
    for name, values in optional.items():
        if any(value is not None for value in values):
            rows.append([name, "", *("" if value is None else value for value in values)])
    return ["", "without", *map(_named, results)], rows
