"""Teach the bundled pipeline styles that it does not know, from twenty images each: `python -m lab.demo.style_study`.

For each style and seed, each method is trained through `hnloader.training`, as a user would, on the same images. Then
all generate validation prompts from the same seeds. The pixels show whether an image has the style, the shape and
position of the prompt, and its color if the style keeps colors. A table of the medians over the training seeds ends it.

The default settings were chosen on the styles `--styles tuned`; the others measure them. Files and images are kept in
the work folder, and the same command resumes from them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from hnloader.attention import attach
from hnloader.cli.train_command import parse_settings
from hnloader.demo import pipeline_folder
from hnloader.demo.drawing import IMAGES
from hnloader.demo.sampling import generate, load_pipeline
from hnloader.demo.scenes import ByteArray, Scene
from hnloader.files import replacing
from hnloader.grids import labeled_grid
from hnloader.loading import load
from hnloader.training import read_config, train
from lab.demo.scene_captions import validation_scenes
from lab.demo.style_evaluation import Row, evaluate
from lab.demo.subjects import EVERY, Subject, subjects
from lab.demo.training.vae import through_vae

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GROUPS = {
    "tuned": ("duotone", "chalk", "sunset", "blueprint"),
    "measured": (
        *("midnight", "cyanotype", "screenprint", "neon", "outline", "halftone"),
        # The first six of the program of which the VAE shows drawn scenes: at least 90 % shown and 85 % kept.
        *(f"unseen {index:02}" for index in (2, 11, 13, 18, 19, 21)),
    ),
}
PROMPTS, SEEDS = 8, 8
_VALIDATION_SEED = 11
_EXAMPLES, _SHOWN_PROMPTS = 3, 5  # in the sheet of all styles

# A hypernetwork is trained with the defaults of `hnloader train`. These change nothing but the time and the disk space.
SETTINGS: dict[str, object] = {
    "validate_every_n_steps": 0,
    "previews.every_n_steps": 0,
    "save_every_n_steps": 100,
}
# The settings of each method. A step of the embedding takes as long; its few numbers need fewer of them.
METHODS: dict[str, dict[str, object]] = {
    "hypernetwork": {"method": "hypernetwork"},
    "lora": {"method": "lora", "lora.targets": "attention", "learning_rate": 3e-3},
    "lora kv": {"method": "lora", "lora.targets": "kv", "lora.rank": 64, "learning_rate": 3e-3},
    "embedding": {"method": "embedding", "embedding.num_vectors": 8, "learning_rate": 2e-2, "steps": 100},
}
GOAL_SHOWN, GOAL_KEPT = 0.9, 0.85
STRENGTHS = (0.5, 1.0)


@dataclass
class Spent:
    """The total time of a training run with its resumptions, kept next to its file.

    Attributes:
        seconds: on the clock.
        processor: of processor time, which other programs on the machine don't lengthen as much.
        steps: how many were made.
    """

    seconds: float = 0.0
    processor: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class Trial:
    """A method, trained on a style from a seed, and its files in the work folder."""

    subject: Subject
    method: str
    seed: int
    work: Path

    @property
    def name(self) -> str:
        """The name in the names of files."""
        return f"{self.subject.key}-{self.method.replace(' ', '-')}-{self.seed}"

    @property
    def file(self) -> Path:
        """The trained file."""
        suffix = ".safetensors" if METHODS[self.method]["method"] == "lora" else ".pt"
        return self.work / f"{self.name}{suffix}"

    @property
    def training_images(self) -> Path:
        """The folder of the training images."""
        return self.work / "images" / self.subject.key

    @property
    def word(self) -> str:
        """The word of an embedding."""
        return f"<{self.subject.key}>"

    def train(self, changes: Mapping[str, object]) -> Spent:
        """Train the file with these changes of the settings, unless it is there, and return the time it took.

        Raises:
            KeyboardInterrupt: it was interrupted, with everything saved.
        """
        images = self.training_images
        self.subject.draw(images, IMAGES)
        given = {"model": str(pipeline_folder()), "images": str(images), "output": str(self.file), "seed": self.seed}
        settings = {**SETTINGS, **given, "embedding.placeholder_token": self.word, **METHODS[self.method], **changes}
        config = read_config(None, settings)
        kept = self.file.with_suffix(".spent.json")
        now = Spent(**json.loads(kept.read_text())) if kept.is_file() else Spent()
        if now.steps >= config.steps and self.file.is_file():
            return now
        began = time.monotonic(), time.process_time()
        result = train(config, resume=True)
        now.seconds += time.monotonic() - began[0]
        now.processor += time.process_time() - began[1]
        now.steps = result.step
        kept.write_text(json.dumps(dataclasses.asdict(now)))
        if result.reason == "interrupted":
            raise KeyboardInterrupt
        return now

    @contextlib.contextmanager
    def applied(self, pipeline: StableDiffusionPipeline, strength: float) -> Iterator[str]:
        """Apply the file while this is active; the value is the end of the prompts."""
        method = METHODS[self.method]["method"]
        if method == "hypernetwork":
            with attach(pipeline.unet, load(self.file), strength):
                yield ""
        elif method == "lora":
            pipeline.load_lora_weights(str(self.file.parent), weight_name=self.file.name, adapter_name="style")
            pipeline.set_adapters("style", strength)
            try:
                yield ""
            finally:
                pipeline.unload_lora_weights()
        else:
            pipeline.load_textual_inversion(str(self.file), token=self.word)
            try:
                yield f", {self.word}"
            finally:
                pipeline.unload_textual_inversion([self.word])

    def images(self, pipeline: StableDiffusionPipeline, strength: float) -> Sequence[ByteArray]:
        """Generate each wanted scene, once."""

        def made() -> list[ByteArray]:
            with self.applied(pipeline, strength) as ending:
                return _generated(pipeline, ending)

        return _kept(self.work / f"{self.name}-{strength:g}.npy", self.file, made)


def wanted_scenes() -> list[Scene]:
    """Return each validation scene once per seed."""
    return [scene for scene in validation_scenes(PROMPTS, _VALIDATION_SEED) for _ in range(SEEDS)]


def _generated(pipeline: StableDiffusionPipeline, ending: str = "") -> list[ByteArray]:
    captions = [scene.caption() + ending for scene in wanted_scenes()]
    return list(generate(pipeline, captions, seed=0, batch=16))


def _kept(path: Path, source: Path | None, draw: Callable[[], list[ByteArray]]) -> Sequence[ByteArray]:
    """Images that are drawn once and kept in `path`, as long as `source`, the file they are drawn with, is older."""
    if not path.is_file() or (source is not None and path.stat().st_mtime < source.stat().st_mtime):
        images = np.stack(draw())
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, images)
    return list(np.load(path))


def painted(subject: Subject, scenes: Sequence[Scene]) -> list[ByteArray]:
    """Return the scenes as the painter of a style draws them."""
    rng = np.random.default_rng(_VALIDATION_SEED)
    return [subject.paint(scene, rng) for scene in scenes]


def study(subject: Subject, pipeline: StableDiffusionPipeline, chosen: argparse.Namespace) -> list[Row]:
    """Train and evaluate all methods on a style; write the images as a grid."""
    scenes, changes = wanted_scenes(), parse_settings(chosen.set)
    plain = _kept(chosen.work / "without.npy", None, lambda: _generated(pipeline))
    drawn = through_vae(pipeline.vae, painted(subject, scenes))
    rows = [evaluate(subject, "drawn, VAE", scenes, drawn), evaluate(subject, "without", scenes, plain)]
    print(_line(rows[0]), _line(rows[1]), sep="\n")
    columns = {"without": plain}
    for method, seed in itertools.product(chosen.methods, chosen.seeds):
        trial = Trial(subject, method, seed, chosen.work)
        spent = trial.train({**changes, **({"steps": chosen.steps} if chosen.steps else {})})
        for strength in STRENGTHS if method != "embedding" else (1.0,):
            images = trial.images(pipeline, strength)
            rows.append(evaluate(subject, f"{method} {strength:g}", scenes, images))
            print(_line(rows[-1], spent), flush=True)
            columns.setdefault(rows[-1].way, images)
    _write_grid(subject, {way: images[::SEEDS] for way, images in columns.items()}, chosen.work)
    return rows


def table(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[str]:
    """Yield a table of shown and kept, the medians over the training seeds, and in how many styles the goal is met."""
    ways = ["drawn, VAE", *(f"{method} {strength:g}" for method in methods for strength in STRENGTHS)]
    cells: dict[str, dict[str, tuple[float, float]]] = {}
    for row in rows:
        same = [each for each in rows if (each.style, each.way) == (row.style, row.way)]
        middle = statistics.median(each.shown for each in same), statistics.median(each.held for each in same)
        cells.setdefault(row.style, {})[row.way] = middle
    ways = [way for way in ways if any(way in found for found in cells.values())]
    yield f"| style | {' | '.join(ways)} |"
    yield "|---" * (len(ways) + 1) + "|"
    for style, found in cells.items():
        yield f"| {style} | {' | '.join(f'{found[way][0]:.0%}, {found[way][1]:.0%}' for way in ways)} |"
    for way in ways:
        met = sum(found[way][0] >= GOAL_SHOWN and found[way][1] >= GOAL_KEPT for found in cells.values())
        yield f"{way}: at least {GOAL_SHOWN:.0%} shown and {GOAL_KEPT:.0%} kept in {met} of {len(cells)} styles"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    try:
        return _run(_arguments(arguments))
    except KeyboardInterrupt:
        print("Interrupted. The same command resumes.")
        return 130


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.style_study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("verification"), help="folder of images and files")
    parser.add_argument(
        "--styles",
        nargs="+",
        choices=(*GROUPS, *dict.fromkeys((*EVERY, *GROUPS["measured"]))),
        default=["measured"],
        metavar="STYLE",
        help=f"{' or '.join(GROUPS)}, or names (default: measured)",
    )
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="of the training (default: 1)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of `hnloader train` for all methods"
    )
    parser.add_argument("--steps", type=int, default=None, help="of each training (default: the method's)")
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: torch's choice)")
    return parser.parse_args(given)


def _run(chosen: argparse.Namespace) -> int:
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    chosen.work.mkdir(parents=True, exist_ok=True)
    print(f"{IMAGES} images; {PROMPTS} validation prompts x {SEEDS} seeds")
    print(f"{'style':<12} {'way':<17} {'shown':>7} {'kept':>7} {'score':>6}  trained for")
    pipeline = load_pipeline(pipeline_folder())
    styles = subjects([name for given in chosen.styles for name in GROUPS.get(given, (given,))])
    rows = [row for subject in styles for row in study(subject, pipeline, chosen)]
    _write_sheet([Trial(subject, chosen.methods[0], chosen.seeds[0], chosen.work) for subject in styles], pipeline)
    print()
    for line in table(rows, chosen.methods):
        print(line)
    return 0


def _line(row: Row, took: Spent | None = None) -> str:
    spent = f"{took.seconds:.0f} s ({took.processor:.0f} s of processor time)" if took else ""
    return f"{row.style:<12} {row.way:<17} {row.shown:>7.1%} {row.held:>7.1%} {row.score:>6.2f}  {spent}".rstrip()


def _write_grid(subject: Subject, kept: Mapping[str, Sequence[ByteArray]], folder: Path) -> None:
    """Write the first image of each prompt, in a column for each way."""
    images = [[Image.fromarray(kept[way][index]) for way in kept] for index in range(PROMPTS)]
    grid = labeled_grid(images, columns=list(kept), rows=_captions(), title=f"{subject.name}, from {IMAGES} images")
    _save(grid, folder / f"style-{subject.key}.png")


def _write_sheet(trials: Sequence[Trial], pipeline: StableDiffusionPipeline) -> None:
    """Write styles.png: some training images of each style, and an image of each prompt at strength 1."""
    rows = []
    for trial in trials:
        drawn = [Image.open(path) for path in trial.subject.draw(trial.training_images, IMAGES)[:_EXAMPLES]]
        made = trial.images(pipeline, 1.0)[::SEEDS][:_SHOWN_PROMPTS]
        rows.append([*drawn, *map(Image.fromarray, made)])
    columns = [*(f"training image {index + 1}" for index in range(_EXAMPLES)), *_captions()[:_SHOWN_PROMPTS]]
    names = [trial.subject.name for trial in trials]
    _save(labeled_grid(rows, columns=columns, rows=names, cell=128), trials[0].work / "styles.png")


def _captions() -> list[str]:
    """Return the validation prompts, each once."""
    return [scene.caption() for scene in validation_scenes(PROMPTS, _VALIDATION_SEED)]


def _save(grid: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        grid.save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
