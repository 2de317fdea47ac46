"""The language model of a predictor that reads texts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hnloader.attention.layout import find_sites
from hnloader.errors import DatasetError
from hnloader.files import sha256_of
from hnloader.language_models import LanguageModel
from hnloader.prediction.model_side import MOST_EXAMPLES, Examples, ModelSide, StyleValues, files_to_read, listed
from hnloader.training.config import TextConfig
from hnloader.training.text_dataset import Document, Part, Row, TextDataset, read_text_files, read_texts, rows_of
from hnloader.training.text_rows import rows_by_document

# The hidden states that are read, as shares of the layers: first the embeddings of the tokens, last the model's output.
_PLACES = (0.0, 1 / 3, 2 / 3, 1.0)
_TEST_TEXT = (
    "This is a story about Nora and a lamp. The old fox walks to the river, because it was cold. Why? He waits."
)


class TextSide(ModelSide):
    """A language model, whose hidden states describe the texts.

    The numbers of a text are the means and deviations of some hidden states over its tokens. So the frozen model does
    most of the reading, and an encoder can be small.

    Args:
        language: The model.
        block_size: The most tokens that it reads of a text at once; longer texts are read in pieces.
    """

    kind = "text"
    # A model that was trained further often reads texts almost as before.
    most_difference = 0.3
    reads = "hidden states"
    differs = "others"

    def __init__(self, language: LanguageModel, block_size: int) -> None:
        self.model = self.language = language
        self.network = language.model.requires_grad_(False)
        self.block_size = block_size
        layers = len(find_sites(self.network))
        self._places = sorted({round(share * layers) for share in _PLACES})
        self.input_size = len(self.numbers(torch.zeros(2, dtype=torch.long)))

    @property
    def device(self) -> torch.device:
        """See `ModelSide`."""
        return self.language.device

    def probe(self) -> Tensor:
        """See `ModelSide`."""
        (row,) = rows_of(Document("", (Part(_TEST_TEXT, True),)), self.language.tokenizer, self.block_size)[:1]
        return self.numbers(row.tokens).cpu()

    def rows_of(self, dataset: TextDataset) -> list[tuple[Document, list[Row]]]:
        """Return the documents of a dataset, in pieces of at most `block_size` tokens."""
        return rows_by_document(dataset, self.language, self.block_size)

    @torch.no_grad()
    def numbers(self, tokens: Tensor) -> Tensor:
        """Return the numbers of a text, float32 [numbers], for its tokens [length]."""
        given = tokens.unsqueeze(0).to(self.device)
        states = self.network(input_ids=given, use_cache=False, output_hidden_states=True).hidden_states
        chosen = [states[min(place, len(states) - 1)][0].float() for place in self._places]
        # Normalized, because the size of hidden states differs between layers and tokens by orders of magnitude.
        normalized = [functional.layer_norm(each, each.shape[-1:]) for each in chosen]
        return torch.cat([part for each in normalized for part in (each.mean(0), each.std(0, unbiased=False))])

    def values_of(self, examples: Examples) -> StyleValues:
        """See `ModelSide`."""
        dataset = _read(examples)
        pieces = [(document.path, row) for document, rows in self.rows_of(dataset) for row in rows]
        if not pieces:
            raise dataset.unusable()
        found = StyleValues(notes=list(listed([f"{source}: {message}" for source, message in dataset.problems])))
        if len(pieces) > MOST_EXAMPLES:
            found.notes.append(f"Found {len(pieces)} texts or pieces of long ones. The first {MOST_EXAMPLES} are used.")
        used = pieces[:MOST_EXAMPLES]
        found.digests += [sha256_of(path) for path in dict.fromkeys(path for path, _ in used) if path is not None]
        found.values += [self.numbers(row.tokens) for _, row in used]
        return found


def _read(examples: Examples) -> TextDataset:
    """Read the texts of a folder or of files; raise DatasetError without usable ones."""
    places = files_to_read(examples, "text")
    if len(places) == 1:
        return read_texts(places[0], TextConfig())
    missing = [path for path in places if not path.is_file()]
    if missing:
        raise DatasetError(f"{missing[0]}: found no such file. Give one folder, or several files.")
    return read_text_files(places[0].parent, places, TextConfig())
