"""Styles of texts: some to predict a hypernetwork from, and another text of the style whose tokens are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hnloader.attention import attach
from hnloader.language_models import LanguageModel
from hnloader.network import Hypernetwork
from hnloader.prediction.style_data import VALIDATION_TARGETS, StyleBatch, StyleData
from hnloader.prediction.style_folders import Style, read_styles
from hnloader.prediction.text_side import TextSide
from hnloader.training import html
from hnloader.training.config import Config
from hnloader.training.fingerprints import fingerprint
from hnloader.training.text_batches import summed_loss, trained_count
from hnloader.training.text_dataset import Row, read_texts
from hnloader.training.text_report import previews_section, save_previews
from hnloader.training.text_rows import block_size_of, first_words
from hnloader.writing import WritingSettings, write_text


@dataclass(frozen=True)
class StyleText:
    """A text, or a piece of a long one."""

    source: str
    row: Row


class TextStyles(StyleData[StyleText, Sequence[Row]]):
    """Folders of texts, and a language model.

    Args:
        config: Checked settings.
        language: The model.
        folder: The folder of the styles.
    """

    side: TextSide

    def __init__(self, config: Config, language: LanguageModel, folder: Path) -> None:
        self.resolution = block_size_of(config, language)
        side = TextSide(language, self.resolution)
        folders = read_styles(folder, "text", lambda place: _read(place, config, side), _identity)
        super().__init__(config, side, folders)
        self.model_hash = fingerprint([side.network])
        self.dtype = next(iter(side.network.parameters())).dtype
        self._numbers: dict[int, Tensor] = {}

    def training(self, step: int, styles: Sequence[Style[StyleText]]) -> StyleBatch[Sequence[Row]]:
        """See `StyleData`."""
        _, rows = self.drawn("styles", step, styles, self.config.batch_size)
        pairs = [(text.row, self.references(given)) for given, (text, *_) in rows]
        return StyleBatch(torch.stack([numbers for _, numbers in pairs]), [row for row, _ in pairs])

    def validation(self, styles: Sequence[Style[StyleText]]) -> list[StyleBatch[Sequence[Row]]]:
        """See `StyleData`."""
        given = self.validation_references(styles)
        return [
            StyleBatch(given, [text.row for text in self.validation_targets(styles, number)])
            for number in range(1, VALIDATION_TARGETS + 1)
        ]

    def references(self, examples: Sequence[StyleText]) -> Tensor:
        """See `StyleData`. The model reads each text once."""
        for text in examples:
            if id(text) not in self._numbers:
                # One by one: in a batch, rounding would depend on the other texts.
                self._numbers[id(text)] = self.side.numbers(text.row.tokens).cpu()
        return torch.stack([self._numbers[id(text)] for text in examples]).to(self.side.device)

    def captions(self, examples: Sequence[StyleText]) -> Tensor:
        """See `StyleData`; texts have none."""
        return torch.zeros(len(examples), 0, device=self.side.device)

    def loss(self, target: Sequence[Row]) -> Tensor:
        """See `StyleData`. All rows are one call, because each has its own hypernetwork."""
        return summed_loss(self.side.network, target, self.side.device) / trained_count(target)

    def preview(self, made: Sequence[tuple[Style[StyleText], Hypernetwork]], folder: Path, step: int) -> Sequence[str]:
        """See `StyleData`."""
        config, prompts, texts = self.config.previews, list[str](), list[str]()
        for index, (style, hypernetwork) in enumerate(made):
            prompts.append(self.prompt(index, first_words(self.side.language, style.examples[-1].row.tokens)))
            settings = WritingSettings(config.max_tokens, seed=config.seed + index)
            with attach(self.side.network, hypernetwork, 1.0):
                texts.append(write_text(self.side.language, prompts[-1], settings))
        shown = [f"{style.name}: {prompt}" for (style, _), prompt in zip(made, prompts, strict=True)]
        save_previews(folder, step, shown, texts)
        return [f"{prompt}{text}" for prompt, text in zip(shown, texts, strict=True)]

    def previews_section(self, folder: Path) -> Iterator[str]:
        """See `StyleData`."""
        return previews_section(folder)

    def figures(self, examples: Sequence[StyleText]) -> str:
        """See `StyleData`."""
        decode = self.side.language.tokenizer.decode
        return html.table([(text.source, decode(text.row.tokens, skip_special_tokens=True)) for text in examples])


def _identity(text: StyleText) -> object:
    return [text.row.tokens.tolist(), text.row.trained.tolist()]


def _read(folder: Path, config: Config, side: TextSide) -> tuple[Sequence[StyleText], int]:
    dataset = read_texts(folder, config.text)
    found = [StyleText(document.source, row) for document, rows in side.rows_of(dataset) for row in rows]
    return found, len(dataset.problems)
