"""Measure what limits the bundled predictor: `python -m lab.demo.predictor_limits --work FOLDER`.

A prediction consists of cores and hidden values, and of bases that are the same for all styles. For each style, this
starts from the prediction and optimizes the cores and the hidden values alone, on sixteen images. The result is about
the best that a predictor with these bases could emit: the rest, up to a trained file, is the limit of the bases, and
the gap to the prediction is that of the encoder and of its training.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from hnloader.demo import predictor_path
from hnloader.network import Hypernetwork
from hnloader.prediction.image_styles import detail_weights
from hnloader.prediction.predictor import Emitted, Predictor
from hnloader.prediction.row_hooks import RowHooks
from hnloader.training.denoiser import Batch
from lab.demo.predictor_study import PROMPTS, TRAINED, Study
from lab.demo.subjects import Subject, subjects

STEPS = 200
_RATE, _WARMUP, _BATCH = 1e-2, 10, 8


def fit(study: Study, predictor: Predictor, subject: Subject, steps: int) -> Hypernetwork:
    """Return the hypernetwork with the predictor's bases and fitted cores and hidden values."""
    latents, texts = study.encoded(study.given(subject))
    with torch.no_grad():
        start = predictor.read(study.encoded(study.references(subject, 0))[0].unsqueeze(0))
    cores, hidden = start.cores.clone().requires_grad_(), start.hidden.clone().requires_grad_()
    optimizer = torch.optim.Adam([cores, hidden])
    random, hooks = torch.Generator().manual_seed(0), RowHooks(study.pipeline.unet)
    with hooks.attached():
        for step in range(1, steps + 1):
            rate = _RATE * min(1, step / _WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[0]["lr"] = rate
            chosen = torch.randint(len(latents), (_BATCH,), generator=random)
            batch = Batch(
                latents[chosen],
                torch.randn(latents[chosen].shape, generator=random),
                torch.randint(len(study.denoiser.alphas_cumprod), (_BATCH,), generator=random),
                texts[chosen],
                masks=detail_weights(latents[chosen], 1.0),
            )
            rows = Emitted(cores.expand(_BATCH, -1, -1, -1), hidden.expand(_BATCH, -1, -1))
            with hooks.applied(predictor.sides(rows)):
                loss = study.denoiser.losses(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return predictor.hypernetwork(Emitted(cores.detach(), hidden.detach()), subject.name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.predictor_limits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("predictor-study"), help="folder of the images")
    parser.add_argument("--predictor", type=Path, default=predictor_path(), help="default: the bundled one")
    parser.add_argument("--styles", nargs="+", default=tuple(TRAINED), help="default: the named ones")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study = Study(chosen.work, chosen.predictor, chosen.prompts, 1)
    predictor = study.predictor.stored.predictor
    print("| style | loss predicted | fitted | score predicted | fitted | trained | kept predicted | fitted |")
    print("|---|---|---|---|---|---|---|---|")
    for subject in subjects(chosen.styles):
        predicted, fitted = study.predict(subject, 0), fit(study, predictor, subject, chosen.steps)
        losses = [study.loss(subject, each) for each in (predicted, fitted)]
        first, second = (study.measured(subject, study.generate(each)) for each in (predicted, fitted))
        cells = [*(f"{loss:.3f}" for loss in losses), f"{first['score']:.2f}", f"{second['score']:.2f}"]
        cells += [f"{TRAINED.get(subject.name, math.nan):.2f}", f"{first['held']:.0%}", f"{second['held']:.0%}"]
        print(f"| {subject.name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
