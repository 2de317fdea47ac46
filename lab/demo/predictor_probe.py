"""Measure what the style of a predictor tells about drawn styles: `python -m lab.demo.predictor_probe`.

For random styles that no predictor was trained on, four images of each are read. A linear function is fitted from the
style's numbers to what was drawn, such as the color of the paper. The table shows the share of the variance that it
explains on other styles: 1 is all of it, 0 none. What it cannot tell, the hypernetwork cannot show.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hnloader.demo import pipeline_folder, predictor_path
from hnloader.demo.random_styles import RandomStyle, random_style
from hnloader.pipelines import load_model
from hnloader.prediction.predictor import Predictor
from hnloader.prediction.predictor_file import load_predictor
from lab.demo.predictor_study import REFERENCES
from lab.demo.training.common import as_tensor

_FITTED = 0.75  # share of the styles; the others are measured
_PENALTIES = (0.1, 1.0, 10.0, 100.0)  # of the ridge regression; the best on the measured styles counts

Fact = Callable[[RandomStyle], Sequence[float]]


def _gradient(style: RandomStyle) -> list[float]:
    first, last = style.paper
    changes = [after - before for before, after in zip(first, last, strict=True)]
    return [change * part for change in changes for part in (math.cos(style.angle), math.sin(style.angle))]


# For each row: the styles that have it, and its numbers.
FACTS: dict[str, tuple[Callable[[RandomStyle], bool], Fact]] = {
    "color of a plain paper": (lambda style: len(style.paper) == 1, lambda style: style.paper[0]),
    "change of a gradient, right and down": (lambda style: len(style.paper) == 2, _gradient),
    "has a paper": (lambda style: True, lambda style: [float(bool(style.paper))]),
    "color of a full ink": (lambda style: style.share == 1, lambda style: style.ink),
    "share of the ink": (lambda style: True, lambda style: [style.share]),
    "is an outline": (lambda style: True, lambda style: [float(bool(style.outline))]),
}


@torch.no_grad()
def drawn(count: int, seed: int) -> tuple[list[RandomStyle], Tensor]:
    """Return random styles, and the latents of images of each, [styles, images, channels, height, width]."""
    vae = load_model(pipeline_folder(), device="cpu", dtype="float32").pipeline.vae
    styles, latents = [], []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        styles.append(random_style(rng))
        pixels = np.stack([image for image, _ in styles[-1].examples(REFERENCES, rng)])
        latents.append(vae.encode(as_tensor(pixels)).latent_dist.mean)
    return styles, torch.stack(latents)


@torch.no_grad()
def explained(predictor: Predictor, styles: Sequence[RandomStyle], latents: Tensor) -> dict[str, float]:
    """Return the explained share of the variance of each fact."""
    numbers = predictor.encoder.read(latents).double()
    numbers = (numbers - numbers.mean(0)) / numbers.std(0).clamp(min=1e-6)
    numbers = torch.cat((numbers, numbers.new_ones(len(numbers), 1)), 1)
    found = {}
    for name, (has, fact) in FACTS.items():
        chosen = [index for index, style in enumerate(styles) if has(style)]
        values = torch.tensor([list(fact(styles[index])) for index in chosen], dtype=torch.double)
        fitted = int(_FITTED * len(chosen))
        one, other = numbers[chosen][:fitted], numbers[chosen][fitted:]
        errors = []
        for penalty in _PENALTIES:
            square = one.T @ one + penalty * torch.eye(one.shape[1], dtype=torch.double)
            weights = torch.linalg.solve(square, one.T @ values[:fitted])
            errors.append(float((other @ weights - values[fitted:]).square().mean()))
        found[name] = 1 - min(errors) / float(values[fitted:].var(0).mean())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.predictor_probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--predictor", type=Path, default=predictor_path(), help="default: the bundled one")
    parser.add_argument("--styles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=99)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = explained(load_predictor(chosen.predictor).predictor, *drawn(chosen.styles, chosen.seed))
    print("| fact | explained |\n|---|---|")
    for name, share in found.items():
        print(f"| {name} | {share:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
