"""Teach the bundled language model styles that it does not know: `python -m lab.demo.stories.styles --work FOLDER`.

Each style is trained through `hnloader.training`, as a user would, on 50 stories of four sentences. Then the model
continues 200 openings at three strengths, and the checker finds the style and the grammar of what it writes. The
settings were chosen with `past`, `bare` and `doubt` on other openings (`--tuning`); the others were trained once.

Files are kept in the work folder, and the same command resumes from them. `--bundle` writes two of them in half
precision for the package.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hnloader.attention import attach
from hnloader.demo import language_model_folder
from hnloader.language_models import LanguageModel, load_language_model
from hnloader.loading import load, save
from hnloader.training import read_config, train
from lab.demo.stories.continuations import Shares, measure, openings
from lab.demo.stories.story_checker import SHOWN
from lab.demo.stories.writer import stories

BUNDLED = ("bare", "past")
STRENGTHS = (0.0, 0.5, 1.0)
STORIES = 50

SETTINGS: dict[str, object] = {
    "text.block_size": 128,
    "batch_size": 4,
    # Each layer has its own sides. With less dropout, more of what the model writes is ungrammatical.
    "hypernetwork.scopes": ["each"],
    "hypernetwork.layer_structure": [1, 2, 1],
    "hypernetwork.activation": "mish",
    "hypernetwork.dropout": 0.8,
    "learning_rate": 3e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 10,
    "steps": 600,
    # All texts are trained on, and the last weights are evaluated.
    "data.validation_split": 0,
    "validate_every_n_steps": 0,
    "previews.every_n_steps": 0,
}


def write_texts(style: str, work: Path) -> Path:
    """Write the stories to train on, and return the file. The loss counts the units, not the openings."""
    texts = work / "texts" / f"{style}.jsonl"
    texts.parent.mkdir(parents=True, exist_ok=True)
    pairs = ({"prompt": story.opening, "completion": story.body} for story in stories(style, STORIES, 0))
    texts.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return texts


def train_style(style: str, work: Path, *, seed: int = 0) -> Path:
    """Write the stories of a style and train a hypernetwork on them.

    Args:
        style: A key of `SHOWN`.
        work: Folder of the texts and the output.
        seed: Seed of the training.

    Returns:
        The file.
    """
    texts, output = write_texts(style, work), work / f"{style}-{seed}.safetensors"
    given = {"model": str(language_model_folder()), "texts": str(texts), "output": str(output), "seed": seed}
    train(read_config(None, {**SETTINGS, **given}), resume=True)
    return output


def bundled_model() -> LanguageModel:
    """Load the bundled language model in float32."""
    return load_language_model(language_model_folder(), device="cpu", dtype="float32")


@dataclass(frozen=True)
class Row:
    """A style at a strength."""

    style: str
    strength: float
    shares: Shares


def evaluate(style: str, path: Path, count: int, *, tuning: bool = False) -> Iterator[Row]:
    """Yield the shares of a hypernetwork at each strength, on openings for evaluations or for choosing settings."""
    language, hypernetwork = bundled_model(), load(path)
    for strength in STRENGTHS:
        with attach(language.model, hypernetwork, strength):
            shares, _ = measure(language, style, count=count, tuning=tuning)
        yield Row(style, strength, shares)


@torch.no_grad()
def is_untouched(path: Path, count: int) -> bool:
    """Return True if the logits of openings are equal bit for bit at strength 0, and after the hypernetwork is gone."""
    language = bundled_model()
    model = language.model
    given = language.tokenizer([story.opening for story in openings(count)], return_tensors="pt", padding=True)
    before = model(**given).logits
    with attach(model, load(path), 0.0) as attachment:
        at_zero = model(**given).logits
        attachment.set_strength(1.0)
        changed = model(**given).logits
    after = model(**given).logits
    return torch.equal(before, at_zero) and torch.equal(before, after) and not torch.equal(before, changed)


def bundle(style: str, path: Path, folder: Path) -> None:
    """Write a hypernetwork in half precision, without the settings of its training, which name local folders."""
    hypernetwork = load(path)
    hypernetwork.metadata.pop("training_config", None)
    hypernetwork.metadata.update(name=style)
    folder.mkdir(parents=True, exist_ok=True)
    save(hypernetwork.requires_grad_(False).half(), folder / f"{style}.safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.stories.styles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("styles"), help="folder of the files")
    parser.add_argument("--styles", nargs="+", choices=tuple(SHOWN), default=tuple(SHOWN))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tuning", action="store_true", help="continue the openings for choosing settings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--bundle", action="store_true", help=f"write {' and '.join(BUNDLED)} for the package")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    print("| style | strength | all units show it | of the units | all grammatical | of the units | same hero |")
    print("|---|---|---|---|---|---|---|")
    for style in chosen.styles:
        path = train_style(style, chosen.work, seed=chosen.seed)
        for row in evaluate(style, path, chosen.prompts, tuning=chosen.tuning):
            print(_line(row), flush=True)
        assert is_untouched(path, min(chosen.prompts, 20)), "strength 0 changes the model"
        if chosen.bundle and style in BUNDLED:
            bundle(style, path, language_model_folder().parent / "text_hypernetworks")
    return 0


def _line(row: Row) -> str:
    shares = row.shares
    values = (shares.shown, shares.shown_units, shares.grammatical, shares.grammatical_units, shares.same_hero)
    cells = (row.style, f"{row.strength:g}", *(f"{value:.1%}" for value in values))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
