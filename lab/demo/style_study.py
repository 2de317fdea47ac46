"""Teach the bundled pipeline styles that it does not know, from twenty images each: `python -m lab.demo.style_study`.

For each style a hypernetwork, a textual-inversion embedding and a LoRA are trained through `hnloader.training`, as a
user would, on the same images. Then all generate validation prompts from the same seeds. The pixels show whether an
image has the style, the shape and position of the prompt, and its color if the style keeps colors.

Files and images are kept in the work folder, and the same command resumes from them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
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
from hnloader.demo.drawing import IMAGES, draw_images
from hnloader.demo.sampling import generate, load_pipeline
from hnloader.demo.scenes import COLORS, ByteArray, FloatArray, Scene, as_floats, lay_out
from hnloader.demo.styles import paint
from hnloader.files import replacing
from hnloader.grids import labeled_grid
from hnloader.loading import load
from hnloader.training import read_config, train
from lab.demo.checker import Mask, look, shrink
from lab.demo.scene_captions import validation_scenes
from lab.demo.study_styles import chalked, dimmed
from lab.demo.style_scores import style_score
from lab.demo.training.vae import through_vae

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STYLES = ("duotone", "chalk", "midnight", "cyanotype", "screenprint")
# Styles that change more than colors. They were tried first and miss the goal (docs/dev/training-evidence.md).
HARDER = ("sunset", "blueprint", "neon")


@dataclass(frozen=True)
class Coloring:
    """The colors of the prompt in a style.

    Attributes:
        tint: what it makes of a color (3,).
        filled: the color is in the inside of the shapes; else it is what stands out from the background.
    """

    tint: Callable[[FloatArray], FloatArray]
    filled: bool


# The other styles leave no colors.
COLORINGS = {
    "chalk": Coloring(chalked, filled=True),
    "midnight": Coloring(dimmed, filled=True),
    "neon": Coloring(as_floats, filled=False),
    "outline": Coloring(as_floats, filled=False),
}
PROMPTS, SEEDS = 8, 8
# From this score on an image counts as showing the style; plain images have about 0, painted ones about 1.
SHOWN = 0.5
# RGB distance: thin lines are washed out by antialiasing more than the surfaces of plain images.
_COLOR_LIMIT = 110.0
_VALIDATION_SEED = 11

SETTINGS: dict[str, object] = {
    "batch_size": 4,
    # One network serves all attention layers of its width, and this model is narrow: [1, 2, 1] does not fit a style.
    "hypernetwork.layer_structure": [1, 8, 1],
    "hypernetwork.activation": "mish",
    "embedding.num_vectors": 8,
    "data.random_flip": False,  # the captions name positions
    "data.random_shift": 2,  # pixels; as far as the bundled pipeline's own images wander
    # All images are trained on: the rate falls to nearly 0, and the final average is evaluated.
    "data.validation_split": 0,
    "validate_every_n_steps": 0,
    "previews.every_n_steps": 0,
    "save_every_n_steps": 100,
    "snr_gamma": 0,
    "ema_decay": 0.99,
}
RATES = {"hypernetwork": "1e-3", "embedding": "2e-2", "lora": "3e-3"}
# A step of the embedding takes as long; its few numbers need fewer of them.
STEPS = {"hypernetwork": 800, "embedding": 100, "lora": 800}
STRENGTHS = (0.5, 1.0)


@dataclass(frozen=True)
class Row:
    """Images of one style made in one way.

    Attributes:
        way: "hypernetwork 0.5", "lora 1", "embedding", ...; "drawn, VAE" is the drawn scenes through the pipeline's
            VAE and back: what could be reached at best.
        shown: share of the images that show the style.
        held: share that shows the prompt's shape and position, and its color where the style leaves it.
        score: mean style score, 0 to 1.
    """

    style: str
    way: str
    shown: float
    held: float
    score: float


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


def train_each(
    style: str, work: Path, steps: Mapping[str, int], changes: Mapping[str, object] | None = None
) -> dict[str, Spent]:
    """Train each method up to its number of steps, with these changes of the settings, and return the time of each.

    Raises:
        KeyboardInterrupt: it was interrupted, with everything saved.
    """
    spent: dict[str, Spent] = {}
    images = draw_images(style, work / "images" / style)
    for method, count in steps.items():
        output = _file(work, style, method)
        kept = output.with_suffix(".spent.json")
        spent[method] = now = Spent(**json.loads(kept.read_text())) if kept.is_file() else Spent()
        if now.steps >= count and output.is_file():
            continue
        given = {"model": str(pipeline_folder()), "images": str(images), "output": str(output)}
        more = {
            "method": method,
            "learning_rate": RATES[method],
            "steps": count,
            "embedding.placeholder_token": f"<{style}>",
        }
        began = time.monotonic(), time.process_time()
        result = train(read_config(None, {**SETTINGS, **given, **more, **(changes or {})}), resume=True)
        now.seconds += time.monotonic() - began[0]
        now.processor += time.process_time() - began[1]
        now.steps = result.step
        kept.write_text(json.dumps(dataclasses.asdict(now)))
        if result.reason == "interrupted":
            raise KeyboardInterrupt
    return spent


def _file(work: Path, style: str, method: str) -> Path:
    return work / f"{style}-{method}{'.safetensors' if method == 'lora' else '.pt'}"


def evaluate(style: str, way: str, scenes: Sequence[Scene], images: Sequence[ByteArray]) -> Row:
    """Evaluate images of scenes by their pixels."""
    scores = [style_score(style, image) for image in images]
    held = [
        _holds(image, scene, COLORINGS.get(style) if way != "without" else None)
        for image, scene in zip(images, scenes, strict=True)
    ]
    shown = [not np.isnan(score) and score >= SHOWN for score in scores]
    return Row(style, way, float(np.mean(shown)), float(np.mean(held)), float(np.nanmean(scores)))


def _holds(image: ByteArray, scene: Scene, coloring: Coloring | None) -> bool:
    """Return True if each object has its shape, position and color."""
    seen = look(image, silhouettes=True)
    if len(seen.objects) != len(scene.objects):
        return False
    for wanted in scene.objects:
        found = next((item for item in seen.objects if item.position == wanted.position), None)
        if found is None or found.shape != wanted.shape:
            return False
        if coloring is not None and _color(image, found.mask, seen.background_color, coloring) != wanted.color:
            return False
    return True


def _color(image: ByteArray, mask: Mask, background: FloatArray, coloring: Coloring) -> str | None:
    """Return the name of the color of an object, or None if it is close to none."""
    pixels = image.astype(np.float32)
    if coloring.filled:
        inside = shrink(mask, 3)
        color = np.median(pixels[inside if inside.any() else mask], axis=0)
    else:
        strength = np.linalg.norm(pixels - background, axis=-1)
        color = np.median(pixels[mask & (strength >= np.quantile(strength[mask], 0.7))], axis=0)
    away = {name: float(np.linalg.norm(color - coloring.tint(as_floats(value)))) for name, value in COLORS.items()}
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] < _COLOR_LIMIT else None


def compare(
    style: str, work: Path, pipeline: StableDiffusionPipeline, methods: Sequence[str]
) -> tuple[list[Row], dict[str, Sequence[ByteArray]]]:
    """Generate the validation prompts in each way and evaluate them; also return the images of the first seed."""
    scenes = wanted_scenes()
    drawn: dict[str, Sequence[ByteArray]] = {
        "drawn, VAE": through_vae(pipeline.vae, _painted(style, scenes)),
        "without": _kept(work / "without.npy", None, lambda: _drawn(pipeline, scenes)),
    }
    for method in methods:
        file = _file(work, style, method)
        for strength in STRENGTHS if method != "embedding" else (1.0,):
            way = f"{method} {strength:g}" if method != "embedding" else method

            def applied(method: str = method, file: Path = file, strength: float = strength) -> list[ByteArray]:
                with _applied(pipeline, method, file, strength, f"<{style}>") as ending:
                    return _drawn(pipeline, scenes, ending)

            drawn[way] = _kept(work / f"{style}-{way}.npy", file, applied)
    rows = [evaluate(style, way, scenes, images) for way, images in drawn.items()]
    return rows, {way: images[::SEEDS] for way, images in drawn.items() if way != "drawn, VAE"}


@contextlib.contextmanager
def _applied(pipeline: StableDiffusionPipeline, method: str, file: Path, strength: float, word: str) -> Iterator[str]:
    """Apply a file while this is active; the value is the end of the prompts."""
    if method == "hypernetwork":
        with attach(pipeline.unet, load(file), strength):
            yield ""
    elif method == "lora":
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="style")
        pipeline.set_adapters("style", strength)
        try:
            yield ""
        finally:
            pipeline.unload_lora_weights()
    else:
        pipeline.load_textual_inversion(str(file), token=word)
        try:
            yield f", {word}"
        finally:
            pipeline.unload_textual_inversion([word])


def wanted_scenes() -> list[Scene]:
    """Return each validation scene once per seed."""
    return [scene for scene in validation_scenes(PROMPTS, _VALIDATION_SEED) for _ in range(SEEDS)]


def _drawn(pipeline: StableDiffusionPipeline, scenes: Sequence[Scene], ending: str = "") -> list[ByteArray]:
    return list(generate(pipeline, [scene.caption() + ending for scene in scenes], seed=0, batch=16))


def _kept(path: Path, source: Path | None, draw: Callable[[], list[ByteArray]]) -> Sequence[ByteArray]:
    """Images that are drawn once and kept in `path`, as long as `source`, the file they are drawn with, is older."""
    if not path.is_file() or (source is not None and path.stat().st_mtime < source.stat().st_mtime):
        images = np.stack(draw())
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, images)
    return list(np.load(path))


def _painted(style: str, scenes: Sequence[Scene]) -> list[ByteArray]:
    rng = np.random.default_rng(_VALIDATION_SEED)
    return [paint(style, *lay_out(scene, rng)) for scene in scenes]


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
    parser.add_argument("--images", type=Path, default=None, help="folder of the grids (default: that of --work)")
    parser.add_argument("--styles", nargs="+", choices=(*STYLES, *HARDER), default=STYLES)
    parser.add_argument("--methods", nargs="+", choices=tuple(RATES), default=("hypernetwork", "embedding"))
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of `hnloader train` for all methods"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        help="of each training (default: as in docs/dev/training-evidence.md)",
    )
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: torch's choice)")
    return parser.parse_args(given)


def _run(chosen: argparse.Namespace) -> int:
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    print(f"{IMAGES} images; {PROMPTS} validation prompts x {SEEDS} seeds")
    print(f"{'style':<10} {'way':<17} {'style shown':>11} {'prompt held':>11} {'score':>6}  trained for")
    pipeline = load_pipeline(pipeline_folder())
    results: list[dict[str, object]] = []
    changes = parse_settings(chosen.set)
    for style in chosen.styles:
        spent = train_each(style, chosen.work, {way: chosen.steps or STEPS[way] for way in chosen.methods}, changes)
        rows, kept = compare(style, chosen.work, pipeline, chosen.methods)
        for row in rows:
            took = spent.get(row.way.split()[0])
            print(_line(row, took), flush=True)
            results.append({**dataclasses.asdict(row), "trained": took and dataclasses.asdict(took)})
        _write_grid(style, kept, (chosen.images or chosen.work) / f"style-{style}.png")
        (chosen.work / "results.json").write_text(json.dumps(results, indent=1))
    return 0


def _line(row: Row, took: Spent | None) -> str:
    time_text = f"{took.seconds:.0f} s ({took.processor:.0f} s of processor time)" if took else ""
    return f"{row.style:<10} {row.way:<17} {row.shown:>11.1%} {row.held:>11.1%} {row.score:>6.2f}  {time_text}".rstrip()


def _write_grid(style: str, kept: dict[str, Sequence[ByteArray]], path: Path) -> None:
    scenes = validation_scenes(PROMPTS, _VALIDATION_SEED)
    images = [[Image.fromarray(kept[way][index]) for way in kept] for index in range(len(scenes))]
    title = f"{style}, from {IMAGES} images"
    grid = labeled_grid(images, columns=list(kept), rows=[scene.caption() for scene in scenes], title=title)
    with replacing(path) as temporary:
        grid.save(temporary, format="PNG")


if __name__ == "__main__":
    raise SystemExit(main())
