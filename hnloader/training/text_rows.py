"""The rows of texts for a language model, their block size, and the first words of a text."""

from __future__ import annotations

from torch import Tensor

from hnloader.errors import ConfigError
from hnloader.language_models import LanguageModel
from hnloader.pipelines import quiet
from hnloader.training.config import Config
from hnloader.training.text_dataset import Document, Row, TextDataset, rows_of

__all__ = ["block_size_of", "first_words", "rows_by_document"]

_BLOCK_SIZE = 512
# Tokens of a text that a preview continues.
_PROMPT_TOKENS = 8


def block_size_of(config: Config, language: LanguageModel) -> int:
    """Return the most tokens of a row; raise ConfigError if the model cannot read as many."""
    wanted, most = config.text.block_size, language.positions
    if not wanted:
        return _BLOCK_SIZE if most is None else min(_BLOCK_SIZE, most)
    if most is not None and wanted > most:
        raise ConfigError(f"Setting 'text.block_size': {language.name} reads at most {most:,} tokens, got {wanted:,}.")
    if wanted < 2:
        raise ConfigError("Setting 'text.block_size': expected 0 or at least 2, got 1.")
    return wanted


def rows_by_document(
    dataset: TextDataset, language: LanguageModel, block_size: int
) -> list[tuple[Document, list[Row]]]:
    """Return the documents of a dataset with their rows; exclude those of which nothing is left."""
    found = []
    with quiet():  # texts longer than the model reads are cut
        for document in dataset.documents:
            try:
                found.append((document, rows_of(document, language.tokenizer, block_size)))
            except ValueError as error:
                dataset.exclude(document.source, str(error))
    return found


def first_words(language: LanguageModel, tokens: Tensor | list[int]) -> str:
    """Return the first words of a text, for a preview that continues them."""
    with quiet():
        return str(language.tokenizer.decode(tokens[:_PROMPT_TOKENS], skip_special_tokens=True)).rstrip()
