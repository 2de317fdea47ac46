"""Make the bundled language model from scratch: `python -m lab.demo.stories.train_model --work FOLDER --minutes 25`.

The model reads plain stories only, each once. Training keeps a checkpoint in the work folder and resumes from it; the
learning rate decays over --minutes or --steps, whichever comes first. Then the model is written in half precision.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hnloader.demo import language_model_folder
from hnloader.language_models import LanguageModel
from lab.demo.stories.continuations import measure
from lab.demo.stories.tokens import (
    CONTEXT,
    END,
    END_ID,
    PAD,
    PAD_ID,
    UNKNOWN,
    UNKNOWN_ID,
    build_tokenizer,
    write_tokenizer,
)
from lab.demo.stories.words import NAMES
from lab.demo.stories.writer import stories
from lab.demo.training.common import Budget, Trainer

WIDTH, LAYERS, HEADS, INNER = 128, 5, 8, 384
BATCH = 32  # stories in a step
_SORTED_STEPS = 4  # whose stories are sorted by length, so that rows need little padding
RATE = 3e-3
# Words that are replaced by the unknown one, so that prompts may have other words.
_UNKNOWN_SHARE = 0.01
# Few words depend on the opening, far before them. With equal weights, the model did not learn to look there.
_HERO_WEIGHT = 8.0


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Return a model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    return LlamaForCausalLM(config)


@functools.lru_cache(maxsize=1)
def _sorted_texts(tokenizer: Tokenizer, block: int) -> list[list[int]]:
    """Return the tokens of new stories, by length."""
    found = stories("plain", BATCH * _SORTED_STEPS, seed=block)
    return sorted(([*tokenizer.encode(str(story)).ids, END_ID] for story in found), key=len)


def rows(tokenizer: Tokenizer, step: int) -> Tensor:
    """Return the tokens of a step, (BATCH, length): in each row a new story with its end, then padding."""
    block, part = divmod(step, _SORTED_STEPS)
    begin = BATCH * part
    ids = [torch.tensor(text) for text in _sorted_texts(tokenizer, block)[begin : begin + BATCH]]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD_ID)


def loss_of(model: LlamaForCausalLM, tokenizer: Tokenizer, step: int) -> Tensor:
    """Return the weighted mean loss of the tokens of a step."""
    ids = rows(tokenizer, step)
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(step)) < _UNKNOWN_SHARE
    logits = model(ids.masked_fill(hidden & (ids > UNKNOWN_ID), UNKNOWN_ID)).logits[:, :-1]
    targets = ids[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    weights = _weights(tokenizer)[targets]
    return (losses * weights).sum() / weights.sum()


def _weights(tokenizer: Tokenizer) -> Tensor:
    """Return the weight of each token: more for the names and pronouns of heroes, none for padding."""
    weights = torch.ones(tokenizer.get_vocab_size())
    for word in (*NAMES, "he", "He", "his", "she", "She", "her"):
        weights[tokenizer.token_to_id(f" {word}")] = _HERO_WEIGHT
    weights[PAD_ID] = 0
    return weights


def export(model: LlamaForCausalLM, folder: Path) -> int:
    """Write the model with its tokenizer; replaces `folder`. Return the size of all files in bytes."""
    if folder.exists():
        shutil.rmtree(folder)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        suppress_tokens=[UNKNOWN_ID],
    )
    model.to(torch.float16).save_pretrained(folder)
    model.to(torch.float32)
    # The weights are float16; programs load them in float32.
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "dtype": "float32"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return sum(file.stat().st_size for file in folder.iterdir())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.stories.train_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=language_model_folder(), help="folder of the model")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--report-every", type=int, default=500, help="steps between checks in the log")
    parser.add_argument("--report-prompts", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    if chosen.minutes == math.inf and chosen.steps == 10**9:
        parser.error("expected --minutes or --steps")
    torch.set_num_threads(chosen.threads)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer)

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=UNKNOWN)
    language = LanguageModel(model, wrapped, chosen.out.name)

    def report(step: int) -> str:
        model.eval()
        shares, _ = measure(language, "past", count=chosen.report_prompts, tuning=True)
        model.train()
        return f"grammatical {shares.grammatical:.1%}, same hero {shares.same_hero:.1%}"

    Trainer(
        {"model": model},
        lambda step: loss_of(model, tokenizer, step),
        Budget(chosen.steps, chosen.minutes),
        chosen.work / "language-model.pt",
        RATE,
        betas=(0.9, 0.95),
        weight_decay=0.01,
        decay=0.995,
        report=report,
        report_every=chosen.report_every,
    ).run()
    print(report(0))
    print(f"{chosen.out}: {export(model, chosen.out) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
