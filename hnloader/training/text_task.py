"""Train on texts: the model is a language model, and the loss is that of predicting each next token."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hnloader.attention.layout import find_sites
from hnloader.language_models import LanguageModel
from hnloader.pipelines import quiet
from hnloader.training.adapters import Adapter
from hnloader.training.config import Config
from hnloader.training.decoder_lora_adapter import DecoderLoraAdapter
from hnloader.training.fingerprints import fingerprint
from hnloader.training.hypernetwork_adapter import HypernetworkAdapter
from hnloader.training.sampler import split
from hnloader.training.task import Task, resolved
from hnloader.training.text_batches import TextBatches, grouped, summed_loss, trained_count
from hnloader.training.text_dataset import Document, Row, TextDataset
from hnloader.training.text_report import previews_section, save_previews, texts_section
from hnloader.training.text_rows import block_size_of, first_words, rows_by_document
from hnloader.units import counted
from hnloader.writing import WritingSettings, prompt_tokens, write_text

# The validation loss is that of about this number of tokens, so that it takes little of the time.
_VALIDATION_BLOCKS = 32
# Without validation texts, the loss before and after the training is that of this number of training texts.
_SUBSTITUTES = 2


class TextTask(Task):
    """Texts, and a language model.

    Args:
        config: Checked settings.
        language: The model. Its weights are frozen, and no gradient is computed below the first trained layer.
        dataset: The texts.

    Attributes:
        rows: The training rows.
        validation_rows: The validation rows.
    """

    data_name = "texts"

    def __init__(self, config: Config, language: LanguageModel, dataset: TextDataset) -> None:
        model = language.model.requires_grad_(False)
        config = resolved(config, find_sites(model))
        self.config, self.language, self.model, self.dataset = config, language, language, dataset
        # Before any hooks: they change the names of weights.
        self.model_hash, self.data_hash = fingerprint([model]), dataset.fingerprint()
        self.device, self.dtype = language.device, next(iter(model.parameters())).dtype
        self.block_size = block_size_of(config, language)
        self._set_up_data()
        self.notes = (*dataset.remarks(), *self._size_note())
        self.adapter: Adapter = (
            DecoderLoraAdapter(config, model) if config.method == "lora" else HypernetworkAdapter(config, model)
        )

    def _set_up_data(self) -> None:
        """Make the rows. Of fewer than five documents, pieces are for validation instead of documents."""
        config = self.config
        made = rows_by_document(self.dataset, self.language, self.block_size)
        if not made:
            raise self.dataset.unusable()
        self.documents = [document for document, _ in made]
        units = [rows for _, rows in made]
        if len(units) < 5:
            units = [[row] for rows in units for row in rows]
        training, validation = split(len(units), config.data.validation_split, config.seed)
        self.rows = [row for index in training for row in units[index]]
        self.validation_rows = [row for index in validation for row in units[index]]
        documents = len(made) == len(units)
        self._validation_documents = [self.documents[index] for index in validation] if documents else []
        self.batches = TextBatches(self.rows, config.batch_size * self.block_size, config.seed)

    def _size_note(self) -> Iterator[str]:
        tokens, wanted = _length(self.rows), self.config.batch_size * self.block_size
        if tokens < wanted:
            yield (
                f"All training texts have {tokens:,} tokens, less than a batch of {wanted:,}: each step sees all of "
                "them. More text gives better results."
            )

    @property
    def has_validation(self) -> bool:
        """See `Task`."""
        return bool(self.validation_rows)

    @property
    def amount(self) -> str:
        """See `Task`."""
        tokens = _length([*self.rows, *self.validation_rows])
        return f"{counted(len(self.documents), 'text')} with {counted(tokens, 'token')}"

    def loss(self, index: int) -> Tensor:
        """See `Task`."""
        rows = self.batches[index]
        return self._summed_loss(rows) / trained_count(rows)

    def _summed_loss(self, rows: Sequence[Row]) -> Tensor:
        """Return the sum of the losses of all trained tokens."""
        groups = grouped(rows)
        return torch.stack([summed_loss(self.language.model, group, self.device) for group in groups]).sum()

    def validation_loss(self) -> float:
        """See `Task`."""
        rows = self.validation_rows or self.rows[:_SUBSTITUTES]
        ends = itertools.accumulate(len(row.tokens) for row in rows)
        limit = _VALIDATION_BLOCKS * self.block_size
        chosen = [row for row, end in zip(rows, ends, strict=True) if end <= limit] or rows[:1]
        total = sum(float(self._summed_loss(part)) for part in _parts(chosen, self.config.batch_size * self.block_size))
        return total / trained_count(chosen)

    # -- previews

    def preview(self, folder: Path, step: int) -> Sequence[str]:
        """See `Task`."""
        previews, prompts = self.config.previews, self.preview_prompts
        with self.adapter.enabled(training=False):
            texts = [
                write_text(self.language, prompt, WritingSettings(previews.max_tokens, seed=previews.seed + index))
                for index, prompt in enumerate(prompts)
            ]
        save_previews(folder, step, prompts, texts)
        return [f"{prompt}{text}" for prompt, text in zip(prompts, texts, strict=True)]

    @property
    def preview_prompts(self) -> tuple[str, ...]:
        """The prompts of the settings, else the first words of texts, those of the validation texts first."""
        previews = self.config.previews
        if previews.prompts:
            return tuple(prompt.replace("{name}", self.config.name) for prompt in previews.prompts)
        documents = [*self._validation_documents, *self.documents]
        return tuple(dict.fromkeys(self._start(document) for document in documents))[: previews.count]

    def _start(self, document: Document) -> str:
        """Return the prompt of a pair, the first message of a conversation, or the first words of a text."""
        tokenizer = self.language.tokenizer
        if document.messages:
            given = [
                dict(each) for each in itertools.takewhile(lambda each: each["role"] != "assistant", document.messages)
            ]
            return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True))
        first = document.parts[0]
        if not first.trained:
            return first.text
        with quiet():
            tokens = prompt_tokens(tokenizer, first.text)
        return first_words(self.language, tokens)

    def report(self, folder: Path) -> Iterator[str]:
        """See `Task`."""
        yield from previews_section(folder)
        counts = {
            "texts": len(self.documents),
            "training tokens": _length(self.rows),
            "validation tokens": _length(self.validation_rows),
            "tokens that the loss counts": trained_count(self.rows),
            "block size": self.block_size,
            "steps per epoch": len(self.batches),
        }
        yield texts_section(counts, self.dataset.problems)


def _length(rows: Sequence[Row]) -> int:
    return sum(len(row.tokens) for row in rows)


def _parts(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Yield rows in parts of about this number of tokens, at least a row."""
    part: list[Row] = []
    for row in rows:
        if part and _length(part) + len(row.tokens) > tokens:
            yield part
            part = []
        part.append(row)
    yield part
