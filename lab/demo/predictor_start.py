"""Compare trainings from a predicted file with those from scratch: `python -m lab.demo.predictor_start --work FOLDER`.

For each style and seed, a hypernetwork is trained from scratch at several rates, with the settings of the style study.
Two others start from the predicted file: one for a third of the steps, one for all of them. All see the same sixteen
images, and the loss of eight others counts. The table shows the lowest last loss from scratch, the first step at which
a training from the prediction reached it, and the last losses of both.

Finished training runs are kept in the work folder, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hnloader.demo import pipeline_folder, predictor_path
from hnloader.training import read_config, train
from lab.demo.style_study import SETTINGS
from lab.demo.subjects import Subject, subjects

_IMAGES = 24
_EVERY = 25  # steps between validations
_SETTINGS: dict[str, object] = {**SETTINGS, "data.validation_split": 1 / 3, "validate_every_n_steps": _EVERY}


def losses(work: Path, subject: Subject, name: str, changes: dict[str, object]) -> dict[int, float]:
    """Return the validation losses of a training by step; it is run once."""
    kept = work / f"{subject.key}-{name}.json"
    if not kept.is_file():
        images = work / "images" / subject.key
        subject.draw(images, _IMAGES)
        given = {
            "model": str(pipeline_folder()),
            "images": str(images),
            "output": str(work / f"{subject.key}-{name}.pt"),
        }
        result = train(read_config(None, {**_SETTINGS, **given, **changes}), resume=True, device="cpu")
        if result.reason == "interrupted":
            raise KeyboardInterrupt
        kept.write_text(json.dumps({int(entry["step"]): entry["validation_loss"] for entry in result.history}))
    found: dict[str, float] = json.loads(kept.read_text())
    return {int(step): loss for step, loss in found.items()}


@dataclass(frozen=True)
class Comparison:
    """Losses of eight images that were not trained on.

    Attributes:
        scratch: The lowest last loss from scratch.
        reached: The first step of the training runs from the prediction with such a loss; None if there is none.
        third: The last loss from the prediction after a third of the steps.
        last: The same after all steps.
    """

    scratch: float
    reached: int | None
    third: float
    last: float


def compare(work: Path, subject: Subject, chosen: argparse.Namespace, seed: int) -> Comparison:
    """Train a style from scratch and from the prediction."""

    def found(name: str, changes: dict[str, object], steps: int) -> dict[int, float]:
        return losses(work, subject, f"{name}-{steps}-{seed}", {**changes, "steps": steps, "seed": seed})

    scratch = [found(f"scratch-{rate:g}", {"learning_rate": rate}, chosen.steps) for rate in chosen.rates]
    start = {"start_from": "predict", "start_predictor": str(chosen.predictor), "learning_rate": chosen.start_rate}
    short, long = (found(f"start-{chosen.start_rate:g}", start, steps) for steps in (chosen.steps // 3, chosen.steps))
    goal = min(_last(each) for each in scratch)
    steps = [step for each in (short, long) for step, loss in each.items() if loss <= goal]
    return Comparison(goal, min(steps, default=None), _last(short), _last(long))


def _last(found: dict[int, float]) -> float:
    return found[max(found)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.predictor_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("predictor-start"), help="folder of the results")
    parser.add_argument("--predictor", type=Path, default=predictor_path())
    parser.add_argument("--styles", nargs="+", default=("duotone", "chalk", "unseen 00"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rates", type=float, nargs="+", default=(2e-3, 4e-3, 8e-3), help="from scratch")
    parser.add_argument("--start-rate", type=float, default=4e-3, help="from the prediction")
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    shares, ends = list[float](), list[bool]()
    print(f"{'style':<12} {'seed':>4} {'scratch':>8} {'reached at step':>15} {'after a third':>13} {'at the end':>10}")
    for subject in subjects(chosen.styles):
        for seed in chosen.seeds:
            found = compare(chosen.work, subject, chosen, seed)
            reached = "never" if found.reached is None else str(found.reached)
            shares.append(1.0 if found.reached is None else found.reached / chosen.steps)
            ends.append(found.last <= found.scratch)
            numbers = f"{reached:>15} {found.third:>13.4f} {found.last:>10.4f}"
            print(f"{subject.name:<12} {seed:>4} {found.scratch:>8.4f} {numbers}", flush=True)
    print(f"median share of the steps: {statistics.median(shares):.2f}")
    print(f"not worse at the end: {sum(ends)} of {len(ends)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
