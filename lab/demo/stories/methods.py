"""Compare ways to teach the bundled language model a style: `python -m lab.demo.stories.methods --work FOLDER`.

The methods are a hypernetwork, a LoRA of keys and values, a LoRA of all linear layers, and prompt tuning. All have
about the same number of trained values. They train on the same stories, through the same loop, for as many steps.
Each method takes the learning rate of three with the lowest validation loss, with which it trains from three seeds.

The model with a trained method then continues validation openings. Drift is the mean Kullback-Leibler divergence of its
next tokens from those of the plain model, on plain stories. All files are kept, and the same command resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hnloader.demo import language_model_folder
from hnloader.language_models import LanguageModel
from hnloader.training.text_task import TextTask
from hnloader.training.trainer import Trainer
from lab.demo.stories import styles
from lab.demo.stories.continuations import measure, openings
from lab.demo.stories.story_checker import SHOWN
from lab.demo.stories.styles import bundled_model, write_texts
from lab.demo.stories.writer import stories
from lab.text.trained_methods import (
    Tokens,
    TrainedMethod,
    best_runs,
    divergence,
    kept,
    mean_loss,
    size_of,
    table,
    tokens_of,
    tokens_per_second,
    train,
    trainer_for,
)

# Few enough values for the prompt of as many to fit into the context of the model, and no dropout.
SETTINGS: dict[str, object] = {
    **styles.SETTINGS,
    "hypernetwork.layer_structure": [1, 0.071, 1],
    "hypernetwork.dropout": 0,
    "steps": 150,
}
COLUMNS = {
    "validation loss": ("validation_loss", ".3f"),
    "style shown": ("shown", ".1%"),
    "grammatical": ("grammatical", ".1%"),
    "drift": ("drift", ".3f"),
}
_VALIDATION_SEED = 99
_VALIDATION_STORIES = 50


@dataclass(frozen=True)
class Run(TrainedMethod):
    """One trained method.

    Attributes:
        shown: Share of continuations that show the style.
        grammatical: Share of continuations that are grammatical.
    """

    shown: float
    grammatical: float


def prepare_method(method: str, style: str, work: Path, rate: float, seed: int) -> Trainer:
    """Return the training run of a method, with about as many trained values as the hypernetwork."""
    name = f"{style}-{method.replace(' ', '-').replace('/', '')}-{rate:g}-{seed}"
    given: dict[str, object] = {
        **SETTINGS,
        "model": str(language_model_folder()),
        "texts": str(write_texts(style, work)),
        "output": str(work / f"{name}.safetensors"),
        "learning_rate": rate,
        "seed": seed,
    }
    return trainer_for(method, given, bundled_model())


def run_method(method: str, style: str, work: Path, rate: float, seed: int, prompts: int) -> Run:
    """Train and evaluate a method."""
    trainer = prepare_method(method, style, work, rate, seed)
    task = trainer.task
    assert isinstance(task, TextTask)
    seconds = train(trainer)
    plain = bundled_model()
    with task.adapter.enabled(training=False), torch.no_grad():
        loss = mean_loss(task.language, validation_tokens(task.language, style))
        drift = divergence(plain, task.language, validation_tokens(plain, "plain"))
        shares, _ = measure(task.language, style, count=prompts, seed=1)
        speed = tokens_per_second(task.language, [story.opening for story in openings(8)], 60)
    return Run(
        method=method,
        rate=rate,
        seed=seed,
        validation_loss=loss,
        drift=drift,
        speed=speed,
        seconds=seconds,
        parameters=sum(parameter.numel() for parameter in task.adapter.parameters),
        size=size_of(trainer.output),
        shown=shares.shown,
        grammatical=shares.grammatical,
    )


def validation_tokens(language: LanguageModel, style: str) -> Tokens:
    """Return the validation stories of a style."""
    return tokens_of(language, map(str, stories(style, _VALIDATION_STORIES, _VALIDATION_SEED, validation=True)))


def run_all(style: str, work: Path, prompts: int) -> list[Run]:
    """Return the runs that count; see `best_runs`."""

    def run(method: str, rate: float, seed: int) -> Run:
        path = work / f"{style} {method.replace('/', '')} {rate:g} {seed} {prompts}.json"
        return kept(path, Run, lambda: run_method(method, style, work, rate, seed, prompts))

    return best_runs(run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.stories.methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("methods"), help="folder of the files")
    parser.add_argument("--styles", nargs="+", choices=tuple(SHOWN), default=("past",))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    chosen.work.mkdir(parents=True, exist_ok=True)
    for style in chosen.styles:
        runs = run_all(style, chosen.work, chosen.prompts)
        print(f"\n{style}\n", *table(runs, COLUMNS), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
