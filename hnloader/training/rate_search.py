"""Find a learning rate: short training runs from the same start, each with another rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from hnloader.errors import ConfigError, DivergedError
from hnloader.files import make_folder, replacing
from hnloader.training import html
from hnloader.training.config import Config
from hnloader.training.learning_rate import HIGHEST
from hnloader.training.preparation import prepare
from hnloader.training.run_folder import run_folder
from hnloader.training.trainer import Trainer

# Multiples of the automatic rate, half a decade apart.
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
LEAST_STEPS, MOST_STEPS = 10, 100


@dataclass(frozen=True)
class TriedRate:
    """A learning rate and the loss that it reached.

    Attributes:
        rate: The learning rate.
        loss: Loss on fixed data after the steps; infinite if the training run diverged.
    """

    rate: float
    loss: float


@dataclass(frozen=True)
class RateSearch:
    """The result of a search.

    Attributes:
        tried: The learning rates in rising order.
        initial_loss: The loss before the first step.
        steps: Steps that each rate got.
        path: The report.
    """

    tried: tuple[TriedRate, ...]
    initial_loss: float
    steps: int
    path: Path

    @property
    def best(self) -> TriedRate | None:
        """The rate with the lowest loss; None if no rate lowered it."""
        best = min(self.tried, key=lambda each: each.loss)
        return best if best.loss < self.initial_loss else None

    @property
    def conclusion(self) -> str:
        """Advice on the settings, one sentence or two."""
        best = self.best
        if best is None:
            return f"No learning rate lowered the loss within {self.steps} steps. Check the training data."
        text = f"Set learning_rate to {best.rate:.2g}."
        if best in (self.tried[0], self.tried[-1]):
            text += " It is at the end of the range, so a rate beyond it may be better."
        return text


def find_learning_rate(
    config: Config,
    *,
    seconds: float = 60.0,
    device: str = "auto",
    callback: Callable[[int, int], None] = lambda done, total: None,
) -> RateSearch:
    """Train with several learning rates for some steps, each from the same start, and compare the losses.

    The same data come in the same order for each rate. The loss is that of the validation.
    Nothing of an earlier training run of this output changes.

    Args:
        config: The settings. `learning_rate` is the middle of the range, which is a thousand times its start.
        seconds: About the time of the steps. Default: 60.
        device: "auto", "cpu", "cuda", ... Default: "auto".
        callback: Called with the numbers of finished rates and of all.

    Returns:
        The rates with their losses. A report with a plot is in the folder of the training run.

    Raises:
        ConfigError: `learning_rate` is a schedule of several rates, or the optimizer finds the rate by itself.
    """
    if config.optimizer == "prodigy":
        raise ConfigError("Setting 'optimizer': prodigy finds the learning rate by itself. Train without --find-lr.")
    trainer = prepare(replace(config, ema_decay=0.0), dry_run=True, device=device)
    try:
        middle = float(trainer.config.learning_rate)
    except ValueError as error:
        raise ConfigError("Setting 'learning_rate' is a schedule. Set it to a number or auto for --find-lr.") from error
    start = [parameter.detach().clone() for parameter in trainer.adapter.parameters]
    initial_loss = trainer.validator.loss()
    steps = _steps_in(trainer, start, middle, seconds / len(FACTORS))
    rates = [middle * factor for factor in FACTORS if middle * factor < HIGHEST]
    tried = []
    for number, rate in enumerate(rates, 1):
        tried.append(TriedRate(rate, _loss_after(trainer, start, rate, steps)))
        callback(number, len(rates))
    found = RateSearch(tuple(tried), initial_loss, steps, run_folder(Path(config.output)) / "learning-rates.html")
    _write(found, config.name)
    return found


def _steps_in(trainer: Trainer, start: Sequence[Tensor], rate: float, seconds: float) -> int:
    """Return the number of steps that fit into this time; the first step is slower and not counted."""
    _loss_after(trainer, start, rate, 1)
    began = time.monotonic()
    _loss_after(trainer, start, rate, 2)
    each = (time.monotonic() - began) / 2
    return max(LEAST_STEPS, min(MOST_STEPS, int(seconds / max(each, 1e-6))))


def _loss_after(trainer: Trainer, start: Sequence[Tensor], rate: float, steps: int) -> float:
    """Train from the start with a constant rate, and return the loss; infinity if it diverges."""
    trainer.start_over(start, rate, steps)
    try:
        with trainer.adapter.attached():
            for step in range(1, steps + 1):
                trainer.train_step(step)
        loss = trainer.validator.loss()
    except DivergedError:
        return math.inf
    return loss if math.isfinite(loss) else math.inf


def _write(found: RateSearch, name: str) -> None:
    make_folder(found.path.parent)
    points = [(math.log10(each.rate), each.loss) for each in found.tried if math.isfinite(each.loss)]
    ends = [(points[0][0], found.initial_loss), (points[-1][0], found.initial_loss)] if points else []
    rows = [
        (f"{each.rate:.2g}", f"{each.loss:.4f}" if math.isfinite(each.loss) else "diverged") for each in found.tried
    ]
    body = [
        html.section("Conclusion", f"<p>{html.text(found.conclusion)}</p>"),
        html.section(
            "Loss", html.curves({f"after {found.steps} steps": points, "before": ends}, "learning rate, power of 10")
        ),
        html.section("Learning rates", html.table(rows, ("learning rate", "loss"))),
    ]
    with replacing(found.path) as temporary:
        temporary.write_text(html.page(name, "search for a learning rate", body), encoding="utf-8")
