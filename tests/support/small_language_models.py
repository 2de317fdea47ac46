"""Small language models with tokenizers in folders, and texts for them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support.small_decoders import VOCABULARY, make_decoder

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_NOUNS = "cat dog bird fish tree house river stone star cloud road ship king queen child"
_OTHERS = "the a red blue old small sees finds loves follows and but then slowly . , ? user: bot:"
WORDS = (*_NOUNS.split(), *_OTHERS.split())
assert len(WORDS) + len(_SPECIAL) <= VOCABULARY
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ 'user: ' if message.role == 'user' else 'bot: ' }}{{ message.content }}"
    "{{ ' </s> ' if message.role == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'bot: ' }}{% endif %}"
)


def make_word_tokenizer(*, chat: bool = False) -> Any:
    """Make a tokenizer of words between spaces, with a token at the start of a text."""
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made


def save_language_model(folder: Path, family: str = "llama", *, chat: bool = False, **changes: Any) -> Path:
    """Save a small random language model with a tokenizer of words."""
    make_decoder(family, **changes).save_pretrained(folder)
    make_word_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def sentences(count: int, *, color: str = "red") -> list[str]:
    """Return different sentences that each name a color."""
    nouns, verbs = _NOUNS.split(), ("sees", "finds", "loves", "follows")
    pairs = ((one, verb, other) for one in nouns for other in nouns for verb in verbs if one != other)
    return [f"the {color} {one} {verb} the {color} {other} ." for one, verb, other in itertools.islice(pairs, count)]


def save_texts(folder: Path, texts: Iterable[str]) -> Path:
    """Save each text as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, text in enumerate(texts):
        (folder / f"{index:03}.txt").write_text(text)
    return folder


def save_lines(path: Path, rows: Iterable[object]) -> Path:
    """Save rows as lines of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path
