"""Compare learning rates on small language models of several widths: `python -m lab.text.rates`.

Each model first learns the sentences of the lighthouse log in any order and without times. Then a hypernetwork and a
LoRA learn the pages themselves, with multiples of the automatic rate.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hnloader.training import prepare, read_config, train
from lab.text.logbook import TIMED, page, write_pages

WIDTHS = (64, 128, 256)
FACTORS = (0.3, 1, 3, 10)
METHODS: dict[str, dict[str, object]] = {
    "hypernetwork": {},
    "each layer, 2/3": {"hypernetwork.scopes": ["each"], "hypernetwork.layer_structure": [1, 0.6667, 1]},
    "each layer, 1/4": {"hypernetwork.scopes": ["each"], "hypernetwork.layer_structure": [1, 0.25, 1]},
    "lora": {"method": "lora"},
}
_PIECES = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the validation loss by width, method and rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/text-rates"), help="folder for the models")
    parser.add_argument("--steps", type=int, default=200, help="steps of each training run")
    given = parser.parse_args(arguments)
    texts = write_pages(given.work / "pages", 100)
    rates = "  ".join(f"x {factor:<4g}" for factor in FACTORS)
    print(f"{'width':>5}  {'method':<15}  {'before':>7}  {rates}  auto")
    for width in WIDTHS:
        model = given.work / f"model-{width}"
        if not model.exists():
            save_model(model, width)
        for method in METHODS:
            print_row(width, method, {"model": str(model), "texts": str(texts), "steps": given.steps}, given.work)
    return 0


def save_model(folder: Path, width: int) -> None:
    """Train a model of a width on sentences without times, and save it."""
    vocabulary: dict[str, int] = {"<pad>": 0, "<end>": 1, "<unknown>": 2}
    random_ = random.Random(0)
    pages = [page(random_) for _ in range(400)]
    for text in pages:
        for piece, _ in _PIECES.pre_tokenize_str(text):
            vocabulary.setdefault(piece, len(vocabulary))
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = _PIECES
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        rows = [torch.tensor(tokenizer(shuffled(random_.choice(pages), random_))["input_ids"]) for _ in range(8)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shuffled(text: str, random_: random.Random) -> str:
    """Return the sentences of a page in any order, some with times, which are then of no use."""
    sentences = [part for part in TIMED.sub(" ", text).split(". ") if part.strip(" .:0123456789")]
    random_.shuffle(sentences)
    numbers = f"{random_.randint(0, 99)} : {random_.randint(0, 99)}"
    return ". ".join(sentence.strip(" .") for sentence in sentences) + f". {numbers}."


def print_row(width: int, method: str, settings: dict[str, object], work: Path) -> None:
    """Train with each rate, and print the lowest validation losses."""
    settings = settings | METHODS[method] | {"text.block_size": 128, "batch_size": 4, "previews.every_n_steps": 0}
    settings |= {"validate_every_n_steps": 50, "output": str(work / "auto")}
    suffix = "" if method == "lora" else ".safetensors"
    trainer = prepare(read_config(None, settings | {"output": f"{work / 'auto'}{suffix}"}), dry_run=True)
    automatic = float(trainer.config.learning_rate)
    losses = []
    for number, factor in enumerate(FACTORS):
        output = work / f"{method.replace('/', '-')}-{width}-{number}{suffix}"
        given = settings | {"output": str(output), "learning_rate": automatic * factor}
        result = train(read_config(None, given), restart=True)
        losses.append(result.best.loss if result.best else float("nan"))
    shown = "  ".join(f"{loss:6.3f}" for loss in losses)
    print(f"{width:5}  {method:<15}  {trainer.validator.loss():7.3f}  {shown}  {automatic:.1e}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
