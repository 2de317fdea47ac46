"""Measure the bundled predictor on styles that it never saw: `python -m lab.demo.predictor_study --work FOLDER`.

The styles are the named ones of the style study, and random ones of other seeds than the training's. For each style,
some images are drawn, a few of them are given to the predictor, and the predicted file generates validation prompts.
The parts are

- one-shot: the style score and the kept prompts, of several draws of four images;
- loss: the loss on other images of the style, without a file, with the predicted one, and with another style's;
- images: the loss after 1, 4 and 16 images;
- speed: the time of a prediction, and whether two predictions have the same bits.

Results are kept in the work folder, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hnloader.attention import attach
from hnloader.demo import pipeline_folder, predictor_path
from hnloader.demo.sampling import generate
from hnloader.demo.scenes import ByteArray
from hnloader.grids import labeled_grid
from hnloader.network import Hypernetwork
from hnloader.pipelines import load_model
from hnloader.prediction.predicting import Examples, StylePredictor
from hnloader.prediction.predictor_file import load_predictor
from hnloader.training.denoiser import Batch, Denoiser
from lab.demo.checker import holds
from lab.demo.scene_captions import validation_scenes
from lab.demo.subjects import EVERY, Subject, subjects
from lab.demo.training.common import as_tensor
from lab.demo.training.vae import through_vae

# Mean scores of fully trained files at strength 1: docs/dev/training-evidence.md.
TRAINED = {
    "duotone": 0.94,
    "chalk": 0.84,
    "midnight": 0.88,
    "cyanotype": 0.70,
    "screenprint": 0.74,
    "sunset": 0.81,
    "blueprint": 0.95,
    "neon": 0.89,
    "outline": 0.93,
}
PARTS = ("loss", "speed", "one-shot")
_PROMPT_SEED, _DRAW_SEED = 11, 3
PROMPTS, SEEDS, DRAWS, REFERENCES = 8, 4, 3, 4
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Images of a style: the first are given to the predictor, the loss is measured on the others.
_GIVEN, _MEASURED = 16, 8
_TIMES = tuple((index + 0.5) / 8 for index in range(8))


class Study:
    """The measurements, kept in a folder."""

    def __init__(self, work: Path, predictor: Path, prompts: int, seeds: int) -> None:
        self.work = work
        model = load_model(pipeline_folder(), device="cpu", dtype="float32")
        self.pipeline = model.pipeline
        self.predictor = StylePredictor(load_predictor(predictor), model)
        self.denoiser = Denoiser(model.pipeline)
        self.scenes = [scene for scene in validation_scenes(prompts, _PROMPT_SEED) for _ in range(seeds)]
        self.seeds = seeds
        work.mkdir(parents=True, exist_ok=True)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a result of an earlier run, or make it."""
        path = self.work / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(make()))
        return json.loads(path.read_text())

    def images(self, subject: Subject) -> list[Path]:
        """Return the images of a style."""
        return subject.draw(self.work / "images" / subject.key, _GIVEN + _MEASURED)

    def given(self, subject: Subject) -> list[Path]:
        """Return the images of a style that the predictor can be given; the loss is measured on the others."""
        return self.images(subject)[:_GIVEN]

    def references(self, subject: Subject, draw: int, count: int = REFERENCES) -> list[Path]:
        """Return the images that the predictor is given."""
        rng = np.random.default_rng((_DRAW_SEED, draw))
        files = self.given(subject)
        return [files[index] for index in sorted(rng.permutation(_GIVEN)[:count])]

    def predict(self, subject: Subject, draw: int, count: int = REFERENCES) -> Hypernetwork:
        """Return the predicted hypernetwork of a draw."""
        return self.predictor.predict(self.references(subject, draw, count), name=subject.name).hypernetwork

    # -- one shot

    def generate(self, hypernetwork: Hypernetwork | None, strength: float = 1.0) -> list[ByteArray]:
        """Generate every prompt with every seed."""
        prompts = [scene.caption() for scene in self.scenes]
        if hypernetwork is None:
            return list(generate(self.pipeline, prompts, seed=0, batch=16))
        with attach(self.pipeline.unet, hypernetwork, strength):
            return list(generate(self.pipeline, prompts, seed=0, batch=16))

    @cached_property
    def plain(self) -> list[ByteArray]:
        """The images without a hypernetwork."""
        path = self.work / f"plain-{len(self.scenes)}.npy"
        if not path.is_file():
            np.save(path, np.stack(self.generate(None)))
        return list(np.load(path))

    def one_shot(self, subject: Subject, draw: int) -> dict[str, float]:
        """Return score and kept prompts of a draw."""
        images = self.generate(self.predict(subject, draw))
        np.save(self.work / f"{subject.key}-{draw}.npy", np.stack(images))
        return self.measured(subject, images)

    def measured(self, subject: Subject, images: Sequence[ByteArray]) -> dict[str, float]:
        """Return the mean score, and the share of images that keep shapes and positions."""
        pairs = list(zip(images, self.scenes, strict=True))
        return {
            "score": float(np.mean([subject.score(image, scene) for image, scene in pairs])),
            "held": float(np.mean([holds(image, scene) for image, scene in pairs])),
        }

    def best_possible(self, subject: Subject) -> dict[str, float]:
        """Return the measures of drawn scenes, through the VAE and back."""
        rng = np.random.default_rng(_DRAW_SEED)
        drawn = [subject.paint(scene, rng) for scene in self.scenes]
        return self.measured(subject, through_vae(self.pipeline.vae, drawn))

    # -- loss

    @torch.no_grad()
    def encoded(self, files: Sequence[Path]) -> tuple[Tensor, Tensor]:
        """Return the latents of images, and the states of their captions."""
        pixels = as_tensor(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files]))
        texts = [self.denoiser.encode_text(path.with_suffix(".txt").read_text()).states for path in files]
        return self.pipeline.vae.encode(pixels).latent_dist.mean, torch.stack(texts)

    @torch.no_grad()
    def loss(self, subject: Subject, hypernetwork: Hypernetwork | None) -> float:
        """Return the loss on the images of a style that are never given, at fixed timesteps and noise."""
        latents, texts = self.encoded(self.images(subject)[_GIVEN:])
        losses = []
        for place, share in enumerate(_TIMES):
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(place))
            timestep = int(share * (len(self.denoiser.alphas_cumprod) - 1))
            batch = Batch(latents, noise, torch.full((len(texts),), timestep), texts)
            if hypernetwork is None:
                losses.append(float(self.denoiser.losses(batch).mean()))
            else:
                with attach(self.pipeline.unet, hypernetwork, 1.0):
                    losses.append(float(self.denoiser.losses(batch).mean()))
        return sum(losses) / len(losses)

    def losses(self, subject: Subject, other: Subject) -> dict[str, float]:
        """Return the losses without a file, with the predicted one, with another style's, and by number of images."""
        found = {"without": self.loss(subject, None), "other": self.loss(subject, self.predict(other, 0))}
        for count in (1, REFERENCES, _GIVEN):
            draws = [self.loss(subject, self.predict(subject, draw, count)) for draw in range(DRAWS)]
            found[f"{count}"] = statistics.mean(draws)
        return found

    def speed(self, subject: Subject) -> tuple[float, bool]:
        """See `prediction_speed`."""
        return prediction_speed(self.predictor, self.references(subject, 0))


def prediction_speed(predictor: StylePredictor, given: Examples) -> tuple[float, bool]:
    """Return the median milliseconds of processor time of a prediction, and whether all have the same bits."""
    times, made = [], []
    for _ in range(9):
        start = time.process_time()
        made.append(predictor.predict(given).hypernetwork)
        times.append(1000 * (time.process_time() - start))
    first = list(made[0].parameters())
    pairs = [pair for each in made for pair in zip(first, each.parameters(), strict=True)]
    return statistics.median(times), all(torch.equal(one, other) for one, other in pairs)


def print_one_shot(study: Study, chosen: Sequence[Subject], draws: int) -> None:
    """Print the scores and the kept prompts."""
    print(f"{len(study.scenes)} images of {len(study.scenes) // study.seeds} prompts, {draws} draws of {REFERENCES}")
    print(f"{'style':<12} {'plain':>6} {'score':>6} {'draws':>16} {'trained':>8} {'share':>6} {'VAE':>6} {'held':>6}")
    shares, held = [], []
    plain_held = float(np.mean([holds(image, scene) for image, scene in zip(study.plain, study.scenes, strict=True)]))
    for subject in chosen:
        key = subject.key
        plain = study.measured(subject, study.plain)["score"]
        rows = [
            study.kept(f"one-shot/{key}-{draw}", lambda subject=subject, draw=draw: study.one_shot(subject, draw))  # type: ignore[misc]
            for draw in range(draws)
        ]
        bound = study.best_possible(subject)["score"]
        score = statistics.mean(row["score"] for row in rows)
        kept = statistics.mean(row["held"] for row in rows)
        trained = TRAINED.get(subject.name)
        share = "" if trained is None else f"{score / trained:.2f}"
        shares += [] if trained is None else [score / trained]
        held.append(kept / plain_held)
        each = " ".join(f"{row['score']:.2f}" for row in rows)
        print(
            f"{subject.name:<12} {plain:>6.2f} {score:>6.2f} {each:>16} {trained or '':>8} {share:>6} {bound:>6.2f} "
            f"{kept:>6.0%}",
            flush=True,
        )
    if shares:
        print(f"share of the trained score at least 0.6: {sum(share >= 0.6 for share in shares)} of {len(shares)}")
    print(f"prompt kept at least 90 % of plain's {plain_held:.0%}: {sum(each >= 0.9 for each in held)} of {len(held)}")


def print_losses(study: Study, chosen: Sequence[Subject]) -> None:
    """Print the losses."""
    header = ("without", "1 image", "4 images", "16 images", "other style", "ratio")
    print(f"{'style':<12} " + " ".join(f"{name:>11}" for name in header))
    rows = []
    for index, subject in enumerate(chosen):
        other = chosen[(index + 1) % len(chosen)]
        key = f"loss/{subject.key}"
        row = study.kept(key, lambda subject=subject, other=other: study.losses(subject, other))  # type: ignore[misc]
        rows.append(row)
        values = [row["without"], row["1"], row["4"], row["16"], row["other"], row["other"] / row["4"]]
        print(f"{subject.name:<12} " + " ".join(f"{value:>11.3f}" for value in values), flush=True)
    medians = [statistics.median(row[key] for row in rows) for key in ("without", "1", "4", "16", "other")]
    ratio = statistics.median(row["other"] / row["4"] for row in rows)
    print(f"{'median':<12} " + " ".join(f"{value:>11.3f}" for value in [*medians, ratio]))


def write_grid(study: Study, chosen: Sequence[Subject], path: Path, prompts: int = 4) -> None:
    """Write one row for each style: given images, then the first prompts without and with the predicted file."""
    scenes = study.scenes[:: study.seeds][:prompts]
    rows = []
    for subject in chosen:
        made = np.load(study.work / f"{subject.key}-0.npy")[:: study.seeds][:prompts]
        given = [Image.open(file).convert("RGB") for file in study.references(subject, 0)]
        rows.append([*given, *map(Image.fromarray, made)])
    columns = [*[f"given {index + 1}" for index in range(REFERENCES)], *[scene.caption() for scene in scenes]]
    _save(labeled_grid(rows, columns=columns, rows=[subject.name for subject in chosen]), path)


def write_walk(study: Study, first: Subject, second: Subject, path: Path, prompts: int = 2) -> None:
    """Write a row for each prompt: an image of the first style, mixtures of both styles, and one of the second."""
    ends = [study.references(subject, 0) for subject in (first, second)]
    made = {
        f"mix {share:g}": study.generate(study.predictor.predict(ends[0], toward=ends[1], mix=share).hypernetwork)
        for share in _SHARES
    }
    given = [Image.open(files[0]).convert("RGB") for files in ends]
    rows = []
    scenes = study.scenes[:: study.seeds][:prompts]
    for index in range(len(scenes)):
        mixed = [Image.fromarray(images[:: study.seeds][index]) for images in made.values()]
        rows.append([given[0], *mixed, given[1]])
    columns = [first.name, *made, second.name]
    _save(labeled_grid(rows, columns=columns, rows=[scene.caption() for scene in scenes]), path)


def _save(grid: Image.Image, path: Path) -> None:
    """Write a grid at half its size in 128 colors, a tenth of its bytes."""
    grid.reduce(2).quantize(128).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.predictor_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("predictor-study"), help="folder of the results")
    parser.add_argument("--predictor", type=Path, default=predictor_path(), help="default: the bundled one")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--styles", nargs="+", choices=EVERY, default=EVERY, metavar="STYLE", help="default: all")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--grid", type=Path, default=None, help="PNG to write")
    parser.add_argument("--walk", type=Path, default=None, help="PNG to write, from the first style to the second")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study, measured = Study(chosen.work, chosen.predictor, chosen.prompts, chosen.seeds), subjects(chosen.styles)
    if "loss" in chosen.parts:
        print_losses(study, measured)
    if "speed" in chosen.parts:
        milliseconds, identical = study.speed(measured[0])
        bits = "the same bits" if identical else "other bits"
        print(f"prediction from {REFERENCES} images: {milliseconds:.0f} ms of processor time; {bits} each time")
    if "one-shot" in chosen.parts:
        print_one_shot(study, measured, chosen.draws)
        if chosen.grid is not None:
            write_grid(study, measured, chosen.grid)
    if chosen.walk is not None:
        write_walk(study, measured[0], measured[1], chosen.walk)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
