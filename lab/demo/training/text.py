"""The tokenizer, made from the words of the captions, and the text encoder.

The tokenizer is CLIP's byte-level BPE with its own small vocabulary: every word that a caption can hold becomes one
token; anything else falls apart into pieces, down to single bytes, so that no prompt fails.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hnloader.demo.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES

PROMPT_TOKENS = 32
TEXT_WIDTH = 112
_START, _END = "<|startoftext|>", "<|endoftext|>"

WORDS = (
    *SHAPES,
    *SIZES,
    *COLORS,
    *BACKGROUNDS,
    *(
        "a",
        "an",
        "and",
        "at",
        "in",
        "on",
        "the",
        "of",
        "with",
        "top",
        "bottom",
        "left",
        "right",
        "center",
        "centre",
    ),
    *("background", "gray", "image", "shape", "two"),
    *(",", "."),
)


def byte_symbols() -> list[str]:
    """Return one printable character for each byte value, as GPT-2's byte-level BPE assigns them.

    Printable bytes represent themselves; the others are the characters from U+0100 on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    symbols = [chr(value) for value in printable]
    return symbols + [chr(256 + index) for index in range(256 - len(printable))]


def learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until each word is one token (its last letter carries '</w>')."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in dict.fromkeys(words)]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in pieces):
        counts = Counter(pair for word in pieces for pair in itertools.pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in pieces:
            for index in range(len(word) - 1, 0, -1):
                if index < len(word) and (word[index - 1], word[index]) == best:
                    word[index - 1 : index + 1] = ["".join(best)]
    return merges


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and the config of a CLIPTokenizer into `folder`, and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(WORDS)
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    tokens += list(dict.fromkeys("".join(pair) for pair in merges))
    tokens += [_START, _END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": PROMPT_TOKENS,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
        "do_lower_case": True,
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 112, 0.4 million parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=7,
            max_position_embeddings=PROMPT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
