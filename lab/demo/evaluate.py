"""Measure how often the bundled pipeline draws its prompt: `python -m lab.demo.evaluate --prompts 200`.

`--styles` measures the style of each bundled hypernetwork at strength 0, 0.5 and 1, and whether shapes and positions
still match the prompt. The prompts combine words that are never trained together. The metrics are `lab.demo.checker`,
`lab.demo.cleanness` and `lab.demo.style_scores`, which use pixels only.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hnloader.attention import attach
from hnloader.demo.sampling import GUIDANCE, STEPS, generate, load_pipeline
from hnloader.demo.scenes import Scene
from hnloader.demo.styles import draw
from hnloader.loading import load
from hnloader.network import Hypernetwork
from lab.demo.checker import ATTRIBUTES, Verdict, check, holds
from lab.demo.cleanness import Cleanness, mean_cleanness
from lab.demo.scene_captions import validation_scenes
from lab.demo.style_scores import style_score
from lab.demo.training.vae import through_vae

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Adherence:
    """Verdicts over a set of prompts, and how clean the images are on average."""

    scenes: tuple[Scene, ...]
    verdicts: tuple[Verdict, ...]
    clean: Cleanness

    def share(self, attribute: str = "right", objects: int | None = None) -> float:
        """Share (0 to 1) of images with an attribute right; 'right' is all of them."""
        chosen = [
            bool(getattr(verdict, attribute))
            for scene, verdict in zip(self.scenes, self.verdicts, strict=True)
            if objects is None or len(scene.objects) == objects
        ]
        return sum(chosen) / len(chosen) if chosen else float("nan")

    def line(self) -> str:
        """All shares in one line, for a log."""
        parts = [f"{attribute} {self.share(attribute):.1%}" for attribute in ATTRIBUTES]
        kinds = f"one object {self.share(objects=1):.1%}, two {self.share(objects=2):.1%}"
        flaws = ", ".join(f"{name} {value:.2f}" for name, value in dataclasses.asdict(self.clean).items())
        return f"all right {self.share():.1%} ({kinds}); {', '.join(parts)}; {flaws}"


def adherence(
    pipeline: StableDiffusionPipeline,
    scenes: Sequence[Scene],
    *,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Adherence:
    """Generate one image per scene from its caption, and check it."""
    captions = [scene.caption() for scene in scenes]
    images = list(generate(pipeline, captions, seed=seed, steps=steps, guidance=guidance))
    verdicts = tuple(check(image, scene) for image, scene in zip(images, scenes, strict=True))
    return Adherence(tuple(scenes), verdicts, mean_cleanness(images, scenes))


@dataclass(frozen=True)
class StyleMeasure:
    """One hypernetwork at one strength over a set of prompts."""

    strength: float
    score: float  # mean style score, 0 to 1
    held: float  # share of images whose shapes and positions are those of the prompt


def measure_style(
    pipeline: StableDiffusionPipeline,
    hypernetwork: Hypernetwork,
    style: str,
    scenes: Sequence[Scene],
    *,
    strengths: Sequence[float] = (0.0, 0.5, 1.0),
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[StyleMeasure]:
    """Generate every scene at every strength, from the same noise, and measure style, shapes and positions."""
    measures = []
    prompts = [scene.caption() for scene in scenes]
    for strength in strengths:
        with attach(pipeline.unet, hypernetwork, strength):
            images = list(generate(pipeline, prompts, seed=seed, steps=steps, guidance=guidance))
        scores = [style_score(style, image) for image in images]
        held = [holds(image, scene) for image, scene in zip(images, scenes, strict=True)]
        measures.append(StyleMeasure(strength, float(np.nanmean(scores)), float(np.mean(held))))
    return measures


def print_adherence(result: Adherence) -> None:
    """Print one line per attribute, then the share of images with everything right."""
    for attribute in ATTRIBUTES:
        print(f"  {attribute:<12}{result.share(attribute):7.1%}")
    print(f"  {'one object':<12}{result.share(objects=1):7.1%}")
    print(f"  {'two objects':<12}{result.share(objects=2):7.1%}")
    print(f"  {'all right':<12}{result.share():7.1%}")


def print_cleanness(made: Cleanness, best: Cleanness) -> None:
    """Print the flaws of generated images, and of drawn ones after the VAE."""
    print(f"  {'':<12}{'made':>7}{'drawn, VAE':>12}")
    for field in dataclasses.fields(Cleanness):
        print(f"  {field.name:<12}{getattr(made, field.name):7.2f}{getattr(best, field.name):12.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo.evaluate", description=__doc__)
    parser.add_argument("--prompts", type=int, default=200, help="number of validation prompts (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts and of the noise (default: 0)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"sampling steps (default: {STEPS})")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help=f"guidance scale (default: {GUIDANCE:g})")
    parser.add_argument("--pipeline", type=Path, default=None, help="pipeline folder (default: the bundled one)")
    parser.add_argument("--styles", action="store_true", help="measure the bundled hypernetworks instead")
    chosen = parser.parse_args(arguments)

    from hnloader.demo import hypernetwork_paths, pipeline_folder

    pipeline = load_pipeline(chosen.pipeline or pipeline_folder())
    scenes = validation_scenes(chosen.prompts, chosen.seed)
    options = {"seed": chosen.seed, "steps": chosen.steps, "guidance": chosen.guidance}
    print(f"{len(scenes)} validation prompts, {chosen.steps} steps, guidance {chosen.guidance:g}, seed {chosen.seed}")
    if not chosen.styles:
        result = adherence(pipeline, scenes, **options)
        print_adherence(result)
        drawn = [draw(scene, chosen.seed + index) for index, scene in enumerate(scenes)]
        print_cleanness(result.clean, mean_cleanness(through_vae(pipeline.vae, drawn), scenes))
        return 0
    for style, path in hypernetwork_paths().items():
        print(f"{path.name}\n  strength   style score   shape and position hold")
        for measure in measure_style(pipeline, load(path), style, scenes, **options):
            print(f"  {measure.strength:8g}   {measure.score:11.2f}   {measure.held:23.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
