"""Compare trainings from a predicted file with those from scratch: `python -m lab.demo.predictor_start --work FOLDER`.

For each style and seed, a hypernetwork is trained from scratch at several rates, with the settings of the style study,
and another one from the predicted file. All see the same sixteen images, and the loss of eight others counts. The table
shows the lowest last loss from scratch, and the step at which the training from the prediction reached it.

Finished trainings are kept in the work folder, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
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


def compare(work: Path, subject: Subject, chosen: argparse.Namespace, seed: int) -> tuple[float, int | None, float]:
    """Return the lowest last loss from scratch, the step that reaches it from the prediction, and its last loss."""
    common: dict[str, object] = {"steps": chosen.steps, "seed": seed}
    scratch = {
        rate: losses(work, subject, f"scratch-{rate:g}-{seed}", {**common, "learning_rate": rate})
        for rate in chosen.rates
    }
    start = {"start_from": "predict", "start_predictor": str(chosen.predictor), "learning_rate": chosen.start_rate}
    started = losses(work, subject, f"start-{seed}", {**common, **start})
    goal = min(found[max(found)] for found in scratch.values())
    reached = next((step for step, loss in sorted(started.items()) if loss <= goal), None)
    return goal, reached, started[max(started)]


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
    parser.add_argument("--rates", type=float, nargs="+", default=(3e-4, 1e-3, 3e-3), help="from scratch")
    parser.add_argument("--start-rate", type=float, default=1e-3, help="from the prediction")
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    shares = []
    print(f"{'style':<12} {'seed':>4} {'scratch':>8} {'reached at step':>15} {'start, last':>11}")
    for subject in subjects(chosen.styles):
        for seed in chosen.seeds:
            goal, reached, last = compare(chosen.work, subject, chosen, seed)
            shares.append((reached if reached is not None else chosen.steps) / chosen.steps)
            print(f"{subject.name:<12} {seed:>4} {goal:>8.4f} {reached or 'never':>15} {last:>11.4f}", flush=True)
    print(f"median share of the steps: {statistics.median(shares):.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
