"""Embedding or hypernetwork? Both trained on the same images with the same budget, and judged side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hnloader.errors import ConfigError
from hnloader.files import make_folder, replacing
from hnloader.grids import labeled_grid
from hnloader.training import html
from hnloader.training.config import Config, Method, replaced
from hnloader.training.dataset import open_image
from hnloader.training.judges import Judge, PaletteJudge, drift
from hnloader.training.report import environment

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.training.loop import Event, Training

METHODS: tuple[Method, ...] = ("hypernetwork", "embedding")
# Prompts that have nothing to do with what was trained, for any model that knows words at all.
UNRELATED = ("a photograph of a street", "a bowl of fruit on a table", "a person reading", "mountains and a lake")


@dataclass(frozen=True)
class Budget:
    """How long each is trained: steps of the configuration, or seconds of training."""

    seconds: float | None = None


@dataclass
class Contender:
    """One of the two.

    Attributes:
        method: "hypernetwork" or "embedding".
        path: its file.
        steps, seconds: of its training; None for a finished file whose training is not known.
        memory: peak memory of the training in bytes, where it can be told (on a graphics card).
        held_out: loss on the images that were not trained on.
        figures: judge's name and kind -> figure.
        drift: how far unrelated prompts moved, 0 to 1.
    """

    method: Method
    path: Path
    steps: int | None = None
    seconds: float | None = None
    memory: int | None = None
    held_out: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    drift: float | None = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        without: figures of the model's own images.
        contenders: hypernetwork, then embedding.
        conclusion: sentences that follow from the figures.
        grid: prompts by ways, the first seed of each.
    """

    without: dict[str, float]
    contenders: tuple[Contender, ...]
    conclusion: tuple[str, ...]
    grid: Image


def compare(
    config: Config,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (1, 2),
    unrelated: Sequence[str] = UNRELATED,
    budget: Budget | None = None,
    finished: dict[Method, Path] | None = None,
    judges: Callable[[list[Image]], list[Judge]] = lambda images: [],
    device: str = "auto",
    report: Callable[[str, Event], None] | None = None,
) -> Comparison:
    """Train both (or take finished ones), draw the same prompts from the same seeds, and judge.

    Args:
        config: the settings; `output` names the files (`style-hypernetwork.pt`, `style-embedding.pt`), and
            `method` is not looked at. A training that was interrupted goes on.
        prompts: drawn with both; the embedding's word is put before each, or where {name} stands.
        unrelated: prompts whose images should not change.
        budget: by default each is trained for `config.steps`.
        finished: files that are not trained again.
        judges: makes the judges besides the palette's, from the training images.
        report: called with the method and the event of each step.

    Raises:
        HypernetworkError: what `hnloader.training.train` raises, or a finished file cannot be loaded.
    """
    made: list[tuple[Contender, Training]] = [
        _contender(method, config, budget or Budget(), (finished or {}).get(method), device, report)
        for method in METHODS
    ]
    draw = _Drawing(config, seeds)
    first = made[0][1]
    without = draw.images(first, prompts, trained=False)
    trained_on = [open_image(image.path).image.convert("RGB") for image in first.dataset.images]
    chosen: list[Judge] = [PaletteJudge(trained_on, without), *judges(trained_on)]
    calm = draw.images(first, unrelated, trained=False) if unrelated else []
    shown: dict[str, list[Image]] = {"without": without}
    asked = [draw.plain(prompt) for prompt in prompts for _ in seeds]
    for contender, training in made:
        images = shown[contender.method] = draw.images(training, prompts, trained=True)
        contender.figures = _judged(chosen, images, asked)
        if unrelated:
            moved = draw.images(training, unrelated, trained=True, named=False)
            contender.drift = drift(moved, calm)
            contender.figures |= _drifts(chosen, moved, calm)
    grid = labeled_grid(
        [[shown[way][row * len(seeds)] for way in shown] for row in range(len(prompts))],
        columns=list(shown),
        rows=[draw.plain(prompt) for prompt in prompts],
    )
    contenders = tuple(contender for contender, _ in made)
    # The model's own images have not moved.
    own = _judged(chosen, without, asked) | {key: 0.0 for key in contenders[0].figures if key.startswith("drift (")}
    return Comparison(own, contenders, tuple(_conclusion(own, *contenders)), grid)


def _judged(judges: Sequence[Judge], images: list[Image], prompts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for judge in judges:
        for kind, figure in (("style", judge.style(images)), ("prompt", judge.adherence(images, prompts))):
            if figure is not None:
                found[f"{kind} ({judge.name})"] = figure
    return found


def _drifts(judges: Sequence[Judge], images: list[Image], before: list[Image]) -> dict[str, float]:
    found = ((judge.name, judge.drift(images, before)) for judge in judges)
    return {f"drift ({name})": figure for name, figure in found if figure is not None}


def _contender(
    method: Method,
    config: Config,
    budget: Budget,
    finished: Path | None,
    device: str,
    report: Callable[[str, Event], None] | None,
) -> tuple[Contender, Training]:
    """Train it, or load it as if it had been trained."""
    from hnloader.training import prepare

    if finished is None:
        config.check()
    output = Path(config.output)
    path = finished or output.with_name(f"{output.stem}-{method}{output.suffix}")
    chosen = replaced(config, method=method, output=str(path), start_from=str(path) if finished else "")
    chosen = replaced(chosen, embedding=dataclasses.replace(chosen.embedding, token=chosen.token))
    training: Training = prepare(chosen, resume=finished is None, judged=finished is not None, device=device)
    contender = Contender(method, path)
    if finished is None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        _train(training, budget, method, report)
        contender.steps, contender.seconds = training.state.step, training.state.seconds
        contender.memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    if training.held_out:
        contender.held_out = training.held_out_loss()
    return contender, training


def _train(training: Training, budget: Budget, method: Method, report: Callable[[str, Event], None] | None) -> None:
    def watch(event: Event) -> None:
        if report is not None:
            report(method, event)
        if budget.seconds is not None and training.state.seconds >= budget.seconds:
            training.stop()

    out_of_time = budget.seconds is not None and training.state.seconds >= budget.seconds
    if training.state.step < training.config.steps and not out_of_time:
        result = training.run(watch)
        if result.why == "interrupted" and budget.seconds is None:
            raise KeyboardInterrupt


class _Drawing:
    """Draws prompts with or without what is trained, always from the same seeds."""

    def __init__(self, config: Config, seeds: Sequence[int]) -> None:
        self._previews, self._seeds, self._config = config.previews, seeds, config

    def images(self, training: Training, prompts: Sequence[str], *, trained: bool, named: bool = True) -> list[Image]:
        """One image per prompt and seed, seeds within prompts."""
        pipeline = training.denoiser.pipeline
        pipeline.set_progress_bar_config(disable=True)
        word = training.config.token if trained and named and training.config.method == "embedding" else ""
        made: list[Image] = []
        for prompt in prompts:
            for seed in self._seeds:
                with torch.no_grad(), training.denoiser.awake(), _maybe(training, trained):
                    result = pipeline(
                        self.worded(prompt, word),
                        num_inference_steps=self._previews.steps,
                        guidance_scale=self._previews.guidance,
                        generator=torch.Generator().manual_seed(seed),
                    )
                made.append(result.images[0])
        return made

    def worded(self, prompt: str, word: str) -> str:
        """Put the embedding's word where {name} stands, else first, where the text encoder reads it in any case."""
        if "{name}" in prompt:
            return prompt.replace("{name}", word)
        return f"{word}, {prompt}" if word else prompt

    def plain(self, prompt: str) -> str:
        """The prompt without any word of ours."""
        return " ".join(prompt.replace("{name}", "").split())


def _maybe(training: Training, trained: bool) -> Any:
    import contextlib

    return training.showing() if trained else contextlib.nullcontext()


# -- words


_CALM = "leaves unrelated prompts more as they were"


def _conclusion(without: dict[str, float], one: Contender, two: Contender) -> Iterator[str]:
    """What the figures say, and nothing else."""
    for kind, what in (("style", "shows more of the style"), ("prompt", "keeps more of the prompt")):
        for key in (key for key in one.figures if key.startswith(f"{kind} (")):
            yield _better(what, key, one, two, one.figures[key], two.figures[key], more=True)
    for key in (key for key in one.figures if key.startswith("drift (")):
        yield _better(_CALM, key, one, two, one.figures[key], two.figures[key], more=False)
    if one.held_out is not None and two.held_out is not None:
        yield _better("fits held-out images better", "loss", one, two, one.held_out, two.held_out, more=False)
    if one.drift is not None and two.drift is not None:
        yield _better(_CALM, "drift", one, two, one.drift, two.drift, more=False)
    smaller, larger = sorted((one, two), key=lambda each: each.size)
    yield f"The {smaller.method}'s file is {larger.size / smaller.size:,.0f} times smaller."


def _better(what: str, key: str, one: Contender, two: Contender, a: float, b: float, *, more: bool) -> str:
    figures = f"({key}: {one.method} {a:.3g}, {two.method} {b:.3g})"
    if abs(a - b) <= 0.02 * max(abs(a), abs(b), 1e-9):
        return f"Neither {what} {figures}."
    winner = one if (a > b) == more else two
    return f"The {winner.method} {what} {figures}."


# -- the report


def write(comparison: Comparison, folder: Path, title: str) -> tuple[Path, Path, Path]:
    """Write report.html, comparison.json and grid.png into `folder`.

    Raises:
        HypernetworkError: the folder cannot be written to.
    """
    make_folder(folder)
    paths = folder / "report.html", folder / "comparison.json", folder / "grid.png"
    header, rows = rows_of(comparison)
    body = [
        html.section("Conclusion", "".join(f"<p>{html.text(line)}</p>" for line in comparison.conclusion)),
        html.section("Figures", html.table(rows, header)),
        html.section("Images", html.image_tag(comparison.grid, "prompts by ways")),
        html.section("Environment", html.table(list(environment().items()))),
    ]
    found = {
        "without": comparison.without,
        "contenders": [
            {**dataclasses.asdict(each), "path": each.path.name, "size": each.size} for each in comparison.contenders
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


def rows_of(comparison: Comparison) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the table of figures; "" where there is none."""
    contenders = comparison.contenders
    rows: list[list[object]] = []
    for key in comparison.without:
        rows.append([key, comparison.without[key], *(each.figures.get(key, "") for each in contenders)])

    def row(name: str, values: list[object]) -> None:
        if any(value is not None for value in values):
            rows.append([name, "", *("" if value is None else value for value in values)])

    row("drift of unrelated prompts", [each.drift for each in contenders])
    row("held-out loss", [each.held_out for each in contenders])
    row("steps", [each.steps for each in contenders])
    row("seconds of training", [each.seconds for each in contenders])
    row("peak memory, MB", [None if each.memory is None else each.memory / 1e6 for each in contenders])
    row("file, kB", [each.size / 1e3 for each in contenders])
    return ["", "without", *(each.method for each in contenders)], rows


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise ConfigError when there is nothing to draw."""
    if not prompts:
        raise ConfigError("there are no prompts to compare with: give --prompts FILE (one per line) or --prompt TEXT")
