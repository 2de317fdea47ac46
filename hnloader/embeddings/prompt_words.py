"""Let prompts of a pipeline use embeddings by their words, without changing the pipeline."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnloader.embeddings.embedding import Embedding
from hnloader.embeddings.embedding_files import embedding_library, word_of
from hnloader.embeddings.embedding_reader import load_embedding
from hnloader.errors import HypernetworkError, ModelError, UnknownFormatError
from hnloader.texts import shown

__all__ = ["PARTS", "PlaceholderTokens", "PromptWords", "files_with_words", "has_word", "text_has_word", "text_parts"]

PARTS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


def text_parts(pipeline: Any) -> list[tuple[str, str]]:
    """Return the names of a pipeline's tokenizers and text encoders: one pair, or two for SDXL."""
    return [part for part in PARTS if getattr(pipeline, part[1], None) is not None]


class PromptWords:
    """The words of some embeddings in the prompts of a pipeline.

    A word is the name of the embedding, as in the webuis, the same in angle brackets, or the token in a file of
    diffusers. Upper and lower case do not matter. The word `ink` is not found in `inks`.

    Args:
        pipeline: The pipeline.
        embeddings: The embeddings, each with a name.

    Raises:
        ModelError: An embedding is for other text encoders.
        HypernetworkError: Two embeddings have the same word.
    """

    def __init__(self, pipeline: Any, embeddings: Sequence[Embedding]) -> None:
        self._parts = text_parts(pipeline)
        self._words: list[dict[str, str]] = [{} for _ in self._parts]
        self._all: list[frozenset[str]] = []
        vectors_of: list[dict[str, Tensor]] = [{} for _ in self._parts]
        for number, embedding in enumerate(embeddings):
            words = _words(embedding)
            if taken := next((word for word in words if any(word in earlier for earlier in self._all)), None):
                raise HypernetworkError(
                    f"{embedding.name}: another embedding has the word {shown(taken)}. Rename the file."
                )
            self._all.append(words)
            token = f"<hnloader-{number}>"
            for encoder, vectors in enumerate(_vectors_by_encoder(pipeline, self._parts, embedding)):
                if vectors is not None:
                    vectors_of[encoder][token] = vectors
                    self._words[encoder] |= dict.fromkeys(words, token)
        self._tokens = [
            PlaceholderTokens(pipeline, *part, vectors)
            for part, vectors in zip(self._parts, vectors_of, strict=True)
            if vectors
        ]

    def inputs(self, prompts: dict[str, str]) -> dict[str, str]:
        """Return the arguments of the pipeline for `prompt` and `negative_prompt`, for each text encoder."""
        texts: dict[str, str] = {}
        for number, words in enumerate(self._words):
            for name, text in prompts.items():
                texts[name if number == 0 else f"{name}_{number + 1}"] = _replaced(text, words)
        return texts

    @contextlib.contextmanager
    def added(self) -> Iterator[None]:
        """Have the pipeline know the words while this is active."""
        with contextlib.ExitStack() as stack:
            for token in self._tokens:
                stack.enter_context(token.added())
            yield


def has_word(embedding: Embedding, text: str) -> bool:
    """Return True if a text has the word of an embedding."""
    return _pattern(_words(embedding)).search(text) is not None


def text_has_word(text: str, word: str) -> bool:
    """Return True if a text has the word of an embedding, with or without angle brackets."""
    return _pattern([word.casefold(), f"<{word.casefold()}>"]).search(text) is not None


def files_with_words(folders: Iterable[Path], text: str, given: Sequence[Path] = ()) -> list[Path]:
    """Return the given embeddings, and those below folders whose words are in a text, the first of each word."""
    taken = {word for path in given for word in _words(load_embedding(path))}
    found = list(given)
    for file in embedding_library(folders).files():
        word = word_of(file.path).casefold()
        if word in taken or not text_has_word(text, word):
            continue
        with contextlib.suppress(UnknownFormatError):  # a hypernetwork or another kind of file
            load_embedding(file.path)
            found.append(file.path)
            taken.add(word)
    return found


def _words(embedding: Embedding) -> frozenset[str]:
    named = (embedding.name, f"<{embedding.name}>", embedding.token or "")
    return frozenset(word.casefold() for word in named if word.strip("<> "))


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    # Longer words first, so that <ink> is not read as ink.
    found = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{found})(?!\w)" if found else r"(?!)", re.IGNORECASE)


def _replaced(text: str, words: dict[str, str]) -> str:
    return _pattern(words).sub(lambda match: words[match[0].casefold()], text)


def _vectors_by_encoder(pipeline: Any, parts: Sequence[tuple[str, str]], embedding: Embedding) -> list[Tensor | None]:
    """Return the vectors for each text encoder; None for one that an embedding of a single encoder leaves alone."""
    widths = [int(getattr(pipeline, encoder).get_input_embeddings().weight.shape[1]) for _, encoder in parts]
    given = [tensor for tensor in (embedding.vectors, embedding.vectors_g) if tensor is not None]
    if len(given) == 1:
        found = [given[0] if width == given[0].shape[1] else None for width in widths]
    else:
        found = [*given] if [tensor.shape[1] for tensor in given] == widths else [None]
    if all(vectors is None for vectors in found):
        raise ModelError(
            f"{embedding.name or 'Embedding'}: it is made for {embedding.made_for}, and the text encoder of this model "
            f"has the width {' and '.join(f'{width}' for width in widths)}. Use an embedding for this kind of model."
        )
    return found


class PlaceholderTokens:
    """Tokens with their own vectors in one text encoder, while `added` is active.

    A copy of the tokenizer has the tokens. Hooks put the vectors into the input of the encoder, whose weights do not
    change.

    Args:
        pipeline: The pipeline.
        tokenizer: Name of the tokenizer in the pipeline.
        encoder: Name of the text encoder in the pipeline.
        vectors: Vectors [count, width] by token.

    Raises:
        HypernetworkError: A token is a word of the tokenizer.
    """

    def __init__(self, pipeline: Any, tokenizer: str, encoder: str, vectors: Mapping[str, Tensor]) -> None:
        self._pipeline, self._tokenizer = pipeline, tokenizer
        self._embedding: nn.Module = getattr(pipeline, encoder).get_input_embeddings()
        self._extended = copy.deepcopy(getattr(pipeline, tokenizer))
        self._by_id: list[tuple[int, Tensor, int]] = []
        for token, tensor in vectors.items():
            self._by_id += [(id_, tensor, index) for index, id_ in enumerate(self._add(token, len(tensor)))]
        self._positions: list[tuple[Tensor, Tensor, int]] = []

    def _add(self, token: str, count: int) -> list[int]:
        """Add a token to the copy of the tokenizer; return the ids for its vectors."""
        # diffusers' names for several vectors: w, w_1, w_2, ...
        tokens = [token, *(f"{token}_{index}" for index in range(1, count))]
        vocabulary = self._extended.get_vocab()
        # CLIP's words end in </w>; some releases of transformers add an existing token again.
        known = [each for each in tokens if each in vocabulary or f"{each.lower()}</w>" in vocabulary]
        if known or self._extended.add_tokens(tokens) != len(tokens):
            raise HypernetworkError(f"{shown(token)} is a word of the model's tokenizer. Choose another word.")
        ids: list[int] = self._extended.convert_tokens_to_ids(tokens)
        return ids

    @contextlib.contextmanager
    def added(self) -> Iterator[None]:
        """Add the tokens to the tokenizer and the vectors to the encoder."""
        before = getattr(self._pipeline, self._tokenizer)
        hooks = [
            self._embedding.register_forward_pre_hook(self._before_lookup),
            self._embedding.register_forward_hook(self._after_lookup),
        ]
        setattr(self._pipeline, self._tokenizer, self._extended)
        try:
            yield
        finally:
            setattr(self._pipeline, self._tokenizer, before)
            for hook in hooks:
                hook.remove()

    def _before_lookup(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Look the new tokens up as token 0: their ids are beyond the end of the table."""
        ids = given[0]
        self._positions = [(ids == id_, vectors, index) for id_, vectors, index in self._by_id]
        for position, _, _ in self._positions:
            ids = ids.masked_fill(position, 0)
        return (ids, *given[1:])

    def _after_lookup(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        for position, vectors, index in self._positions:
            output = torch.where(position.unsqueeze(-1), vectors[index].to(output.device, output.dtype), output)
        return output
