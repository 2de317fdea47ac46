"""Compare ways to teach SmolLM2 the style of a log: `python -m lab.text.compare_methods --work FOLDER`.

The methods are those of `lab.demo.stories.methods`: a hypernetwork, a LoRA of keys and values, a LoRA of all linear
layers, and prompt tuning. They train on the same pages, through the same loop, for as many steps. Each method takes
the learning rate of three with the lowest validation loss. The hypernetwork and the LoRAs have about as many values
as the smallest LoRA of all layers; a prompt of as many values would be too slow.

Drift is the mean Kullback-Leibler divergence of the next tokens from those of the plain model, on texts that the plain
model wrote. All files are kept, and the same command resumes.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hnloader.language_models import LanguageModel, load_language_model
from hnloader.training.text_task import TextTask
from hnloader.writing import WritingSettings, write_text
from lab.text.__main__ import PAGES, PROMPTS, UNRELATED, smollm2
from lab.text.logbook import page_texts, style_share, write_pages
from lab.text.trained_methods import (
    Tokens,
    TrainedMethod,
    best_runs,
    continued,
    divergence,
    kept,
    mean_loss,
    size_of,
    table,
    tokens_of,
    train,
    trainer_for,
)

SETTINGS: dict[str, object] = {
    "hypernetwork.layer_structure": [1, 0.23, 1],
    "hypernetwork.dropout": 0,
    "text.block_size": 64,
    "batch_size": 2,
    "lr_warmup_steps": 3,
    "validate_every_n_steps": 0,
    "previews.every_n_steps": 0,
}
COLUMNS = {
    "validation loss": ("validation_loss", ".3f"),
    "pages in style": ("pages_shown", ".0%"),
    "other texts in style": ("others_shown", ".0%"),
    "drift": ("drift", ".3f"),
}
# So few steps need higher learning rates than those of the stories.
RATES = {
    "hypernetwork": (3e-3, 1e-2, 3e-2),
    "K/V LoRA": (3e-3, 1e-2, 3e-2),
    "all-linear LoRA": (3e-3, 1e-2, 3e-2),
    "prompt tuning": (1e-2, 3e-2, 1e-1),
}
_LONGEST_PROMPT = 80
_VALIDATION_SEED, _VALIDATION_PAGES = 99, 16
_COPIES, _LENGTH = 4, 40


@dataclass(frozen=True)
class Run(TrainedMethod):
    """One trained method.

    Attributes:
        pages_shown: Share of continued pages in the style.
        others_shown: Share of other continued texts in the style.
    """

    pages_shown: float
    others_shown: float


@dataclass(frozen=True)
class Comparison:
    """The plain model, its data and the folder of the files."""

    plain: LanguageModel
    model: Path
    work: Path
    steps: int
    validation: Tokens
    others: Tokens

    def run(self, method: str, rate: float, seed: int) -> Run:
        """Return a trained and evaluated method, from its file if it was finished before."""
        name = f"{method.replace(' ', '-').replace('/', '')}-{rate:g}-{seed}-{self.steps}"
        return kept(self.work / f"{name}.json", Run, lambda: self._run(name, method, rate, seed))

    def _run(self, name: str, method: str, rate: float, seed: int) -> Run:
        given: dict[str, object] = {
            **SETTINGS,
            "model": str(self.model),
            "texts": str(self.work / "pages"),
            "output": str(self.work / f"{name}.safetensors"),
            "learning_rate": rate,
            "seed": seed,
            "steps": self.steps,
        }
        language = replace(self.plain, model=copy.deepcopy(self.plain.model))
        trainer = trainer_for(method, given, language, _LONGEST_PROMPT)
        task = trainer.task
        assert isinstance(task, TextTask)
        seconds = train(trainer)
        with task.adapter.enabled(training=False):
            loss = mean_loss(task.language, self.validation)
            drift = divergence(self.plain, task.language, self.others)
            pages, speed = continued(task.language, PROMPTS, _COPIES, _LENGTH)
            others, _ = continued(task.language, UNRELATED, _COPIES, _LENGTH)
        run = Run(
            method=method,
            rate=rate,
            seed=seed,
            validation_loss=loss,
            drift=drift,
            speed=speed,
            seconds=seconds,
            parameters=sum(parameter.numel() for parameter in task.adapter.parameters),
            size=size_of(trainer.output),
            pages_shown=style_share(pages),
            others_shown=style_share(others),
        )
        print(run, flush=True)
        return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.text.compare_methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("build/text-methods"), help="folder of the files")
    parser.add_argument("--model", type=Path, help="another folder of transformers or .gguf file")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    chosen = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    work: Path = chosen.work
    write_pages(work / "pages", PAGES)
    model = chosen.model or smollm2()
    plain = load_language_model(model, device="cpu", dtype="float32")
    others = [prompt + write_text(plain, prompt, WritingSettings(60)) for prompt in UNRELATED]
    validation = tokens_of(plain, page_texts(_VALIDATION_PAGES, _VALIDATION_SEED))
    comparison = Comparison(plain, model, work, chosen.steps, validation, tokens_of(plain, others))
    print(f"Validation loss of the plain model: {mean_loss(plain, validation):.3f}", flush=True)
    runs = best_runs(comparison.run, RATES, range(chosen.seeds))
    print("", *table(runs, COLUMNS), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
