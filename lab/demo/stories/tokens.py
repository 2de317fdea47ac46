"""The tokenizer of the bundled language model: one token for each word of the stories."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lab.demo.stories.grammar import vocabulary

__all__ = ["CONTEXT", "END", "END_ID", "PAD", "PAD_ID", "UNKNOWN", "UNKNOWN_ID", "build_tokenizer", "write_tokenizer"]

SPECIAL = END, PAD, UNKNOWN = "<|endoftext|>", "<pad>", "<unk>"
END_ID, PAD_ID, UNKNOWN_ID = range(len(SPECIAL))
CONTEXT = 512  # tokens
_MARKS = (",", ".", "?")


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer. A token is a word with the space before it, or a punctuation mark."""
    words = (word if word in _MARKS else f" {word}" for word in vocabulary())
    entries = {token: index for index, token in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer in the form that transformers 4 and 5 read."""
    build_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": CONTEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
