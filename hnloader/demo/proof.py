"""Teach the bundled pipeline styles that it does not know, from twenty pictures each: `python -m hnloader.demo.proof`.

For each style a hypernetwork and a textual-inversion embedding are trained through `hnloader.training`, as a user
would, on the same pictures for the same number of steps. Then both draw held-out prompts from the same seeds, and the
pictures are judged by their pixels: does the picture show the style, and does it still show the shape and position of
the prompt, and its color where the style leaves it?

What is done is kept in the work folder, and goes on from there when called again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from hnloader.attention import attach
from hnloader.demo import pipeline_folder
from hnloader.demo.checker import look
from hnloader.demo.evaluate import generate, load_pipeline
from hnloader.demo.pictures import PICTURES, draw_pictures
from hnloader.demo.scenes import COLORS, ByteArray, Scene, held_out_scenes, lay_out
from hnloader.demo.style_scores import style_score
from hnloader.demo.styles import paint
from hnloader.demo.training.common import as_pictures, as_tensor
from hnloader.files import replacing
from hnloader.formats import load
from hnloader.grids import labelled_grid
from hnloader.training import read_config, train

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

# Not the halftone: the pipeline's VAE blurs its dots of 4 pixels, and what the VAE cannot show no training brings.
STYLES = ("outline", "blueprint", "wash", "duotone", "neon")
# Styles that keep the colors which the words ask for.
COLORFUL = frozenset({"outline", "wash", "neon"})
PROMPTS, SEEDS = 8, 8
# From this score on a picture counts as showing the style; plain pictures have about 0, painted ones about 1.
SHOWN = 0.5
# RGB distance: thin lines are washed out by antialiasing more than the surfaces of plain pictures.
_COLOR_LIMIT = 110.0
_HELD_OUT_SEED = 11

SETTINGS: dict[str, object] = {
    "batch_size": 4,
    # One network serves all attention layers of its width, and this model is narrow: [1, 2, 1] does not fit a style.
    "hypernetwork.layer_structure": [1, 8, 1],
    "hypernetwork.activation": "mish",
    "data.flip": False,  # the captions name positions
    "previews.every": 0,
    "save_every": 100,
    "measure_every": 50,
    "min_snr": 0,
    "ema": 0.98,
}
RATES = {"hypernetwork": "1e-3", "embedding": "1e-2"}


@dataclass(frozen=True)
class Row:
    """Pictures of one style made in one way.

    Attributes:
        way: "hypernetwork 0.5", "embedding", ...; "drawn, VAE" is the drawn scenes through the pipeline's VAE and back:
            what could be reached at best.
        shown: share of the pictures that show the style.
        held: share that shows the prompt's shape and position, and its color where the style leaves it.
        score: mean style score, 0 to 1.
    """

    style: str
    way: str
    shown: float
    held: float
    score: float


def train_each(style: str, work: Path, steps: int, methods: Sequence[str]) -> dict[str, float]:
    """Train what is not trained yet; seconds for each method, summed over interruptions."""
    seconds: dict[str, float] = {}
    pictures = draw_pictures(style, work / "pictures" / style)
    for method in methods:
        output = work / f"{style}-{method}.pt"
        clock = output.with_suffix(".seconds")
        before = float(clock.read_text()) if clock.is_file() else 0.0
        if not output.is_file():
            given = {"model": str(pipeline_folder()), "pictures": str(pictures), "output": str(output)}
            more = {"method": method, "learning_rate": RATES[method], "steps": steps, "embedding.token": f"<{style}>"}
            start = time.monotonic()
            result = train(read_config(None, {**SETTINGS, **given, **more}), resume=True)
            # Twenty pictures are learnt by heart in the end: the file of the lowest held-out loss is judged.
            assert result.best is not None  # there are always pictures for measuring
            shutil.copyfile(result.best[2], output)
            before += time.monotonic() - start
            clock.write_text(str(before))
        seconds[method] = before
    return seconds


def judge(style: str, way: str, scenes: Sequence[Scene], pictures: Sequence[ByteArray]) -> Row:
    """Judge pictures of scenes by their pixels."""
    scores = [style_score(style, picture) for picture in pictures]
    held = [
        _holds(picture, scene, colors=style in COLORFUL and way != "without")
        for picture, scene in zip(pictures, scenes, strict=True)
    ]
    shown = [not np.isnan(score) and score >= SHOWN for score in scores]
    return Row(style, way, float(np.mean(shown)), float(np.mean(held)), float(np.nanmean(scores)))


def _holds(picture: ByteArray, scene: Scene, *, colors: bool) -> bool:
    """Whether each object of the scene is seen: its shape where it should be, and its color."""
    seen = look(picture, silhouettes=True)
    if len(seen.objects) != len(scene.objects):
        return False
    for wanted in scene.objects:
        found = next((item for item in seen.objects if item.position == wanted.position), None)
        if found is None or found.shape != wanted.shape:
            return False
        if colors and _strongest_color(picture, found.mask, seen.background_color) != wanted.color:
            return False
    return True


def _strongest_color(picture: ByteArray, mask: Any, background: Any) -> str | None:
    """The name of the color that stands out most from the background within `mask`."""
    pixels = picture.astype(np.float32)[mask]
    strength = np.linalg.norm(pixels - background, axis=-1)
    color = np.median(pixels[strength >= np.quantile(strength, 0.7)], axis=0)
    away = {name: float(np.linalg.norm(color - np.asarray(value))) for name, value in COLORS.items()}
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] < _COLOR_LIMIT else None


def compare(
    style: str, work: Path, pipeline: StableDiffusionPipeline, methods: Sequence[str]
) -> tuple[list[Row], dict[str, list[ByteArray]], list[Scene]]:
    """Draw the held-out prompts in each way, and judge them; the first seed's pictures are given back."""
    scenes = held_out_scenes(PROMPTS, _HELD_OUT_SEED)
    every = [scene for scene in scenes for _ in range(SEEDS)]
    word = f"<{style}>"
    rows = [judge(style, "drawn, VAE", every, _through_vae(style, every, pipeline))]
    kept: dict[str, list[ByteArray]] = {}
    ways: dict[str, tuple[float, str]] = {"without": (0.0, "")}
    if "hypernetwork" in methods:
        hypernetwork = load(work / f"{style}-hypernetwork.pt")
        ways |= {"hypernetwork 0.5": (0.5, ""), "hypernetwork 1": (1.0, "")}
    if "embedding" in methods:
        pipeline.load_textual_inversion(str(work / f"{style}-embedding.pt"), token=word)
        ways["embedding"] = (0.0, f", {word}")
    for way, (strength, ending) in ways.items():
        prompts = [scene.caption() + ending for scene in every]
        acting = attach(pipeline.unet, hypernetwork, strength) if strength else contextlib.nullcontext()
        with acting:
            pictures = list(generate(pipeline, prompts, seed=0, batch=16))
        rows.append(judge(style, way, every, pictures))
        kept[way] = pictures[::SEEDS]
    if "embedding" in methods:
        pipeline.unload_textual_inversion([word])
    return rows, kept, scenes


@torch.no_grad()
def _through_vae(style: str, scenes: Sequence[Scene], pipeline: StableDiffusionPipeline) -> list[ByteArray]:
    """The scenes as the painter draws them, encoded and decoded."""
    rng = np.random.default_rng(_HELD_OUT_SEED)
    drawn = np.stack([paint(style, *lay_out(scene, rng)) for scene in scenes])
    latents = pipeline.vae.encode(as_tensor(drawn)).latent_dist.mean
    return list(as_pictures(pipeline.vae.decode(latents).sample))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hnloader.demo.proof", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("proof"), help="folder of pictures and files")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES)
    parser.add_argument("--methods", nargs="+", choices=tuple(RATES), default=tuple(RATES))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: torch's choice)")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    print(f"{PICTURES} pictures, {chosen.steps} steps; {PROMPTS} held-out prompts x {SEEDS} seeds")
    print(f"{'style':<10} {'way':<17} {'style shown':>11} {'prompt held':>11} {'score':>6} {'trained':>8}")
    results: list[dict[str, object]] = []
    for style in chosen.styles:
        seconds = train_each(style, chosen.work, chosen.steps, chosen.methods)
        rows, kept, scenes = compare(style, chosen.work, load_pipeline(pipeline_folder()), chosen.methods)
        for row in rows:
            spent = seconds.get(row.way.split()[0])
            time_text = f"{spent:6.0f} s" if spent is not None else ""
            print(
                f"{style:<10} {row.way:<17} {row.shown:>11.1%} {row.held:>11.1%} {row.score:>6.2f} {time_text:>8}",
                flush=True,
            )
            results.append({**dataclasses.asdict(row), "seconds": spent, "steps": chosen.steps})
        _write_grid(style, kept, scenes, chosen.work / f"{style}.png")
        (chosen.work / "results.json").write_text(json.dumps(results, indent=1))
    return 0


def _write_grid(style: str, kept: dict[str, list[ByteArray]], scenes: Sequence[Scene], path: Path) -> None:
    images = [[Image.fromarray(kept[way][index]) for way in kept] for index in range(len(scenes))]
    grid = labelled_grid(
        images, columns=list(kept), rows=[scene.caption() for scene in scenes], title=f"{style}, from 20 pictures"
    )
    with replacing(path) as temporary:
        grid.save(temporary, format="PNG")


if __name__ == "__main__":
    raise SystemExit(main())
