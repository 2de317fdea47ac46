"""Captions as a training run uses them, and the number of their tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hnloader.training.caption_files import words_of
from hnloader.training.config import Config, DataConfig
from hnloader.training.dataset import Dataset, TrainingImage

# Tokens that CLIP's text encoders read, without the start and end tokens.
MAX_TOKENS = 75
# A word, an ending such as 's, a digit or a run of signs is at least one token of CLIP.
_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)

Count = Callable[[str], int]


def caption_of(image: TrainingImage, config: DataConfig, name: str, choice: int) -> str:
    """Return the caption of an image, or a template.

    Args:
        image: The image.
        config: The templates and the prefix.
        name: The text for {name}.
        choice: Any whole number. It selects the template.
    """
    text = image.caption
    if text is None:
        text = config.templates[choice % len(config.templates)] if config.templates else "{name}"
    text = text.replace("{name}", name).replace("{filename}", words_of(image.path.stem))
    return f"{config.prefix} {text}".strip() if config.prefix else text


def training_caption(image: TrainingImage, config: Config, choice: int) -> str:
    """Return the caption for a training run; for an embedding it contains the placeholder token.

    The token goes first if the caption lacks it, because the text encoder reads only the start of a long caption.
    """
    if config.method != "embedding":
        return caption_of(image, config.data, config.name, choice)
    token = config.placeholder_token
    caption = caption_of(image, config.data, token, choice)
    if token not in caption:
        return f"{token}, {caption}" if caption else token
    return caption


class Captioner:
    """The captions of a training run, with the placeholder token of an embedding where the text encoder reads it.

    Args:
        config: The settings.
        tokenizer: The tokenizer of the model.
        num_vectors: The number of vectors of the embedding.
    """

    def __init__(self, config: Config, tokenizer: Any, num_vectors: int) -> None:
        self._config = config
        count, self._max_tokens = token_counter(tokenizer)
        self._count = count_with_placeholder(config, count, num_vectors)
        self._known: dict[str, str] = {}

    def __call__(self, image: TrainingImage, choice: int) -> str:
        """Return the caption of an image; `choice` selects the template."""
        caption = training_caption(image, self._config, choice)
        if self._config.method != "embedding":
            return caption
        if caption not in self._known:
            token = self._config.placeholder_token
            start = caption[: caption.index(token) + len(token)]
            unread = self._count(start) > self._max_tokens
            self._known[caption] = f"{token}, {caption}" if unread else caption
        return self._known[caption]

    def check(self, dataset: Dataset) -> None:
        """Add a problem for each caption that is too long."""
        check_caption_lengths(dataset, self, self._count, self._max_tokens)


def check_caption_lengths(
    dataset: Dataset, caption: Callable[[TrainingImage, int], str], count: Count, max_tokens: int
) -> None:
    """Add a problem for each image whose caption is longer than the text encoder reads.

    Args:
        dataset: The images.
        caption: Returns the caption of an image for a choice of template.
        count: Returns the number of tokens of a caption.
        max_tokens: The number of tokens that the text encoder reads.
    """
    for index, image in enumerate(dataset.images):
        tokens = count(caption(image, index))
        if tokens > max_tokens:
            dataset.warn(
                image.path, f"The caption has {tokens} tokens, and the model reads the first {max_tokens}. Shorten it."
            )


def count_tokens(text: str) -> int:
    """Return the least number of tokens that CLIP makes of a text, without its vocabulary."""
    return len(_PIECES.findall(text))


def token_counter(tokenizer: Any) -> tuple[Count, int]:
    """Return a function that counts tokens, and the number of tokens that the text encoder reads."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    return count, int(tokenizer.model_max_length) - 2  # the start and the end token


def count_with_placeholder(config: Config, count: Count, num_vectors: int) -> Count:
    """Return a counter that counts the placeholder token of an embedding as its vectors."""
    if config.method != "embedding":
        return count

    def counted(text: str) -> int:
        parts = text.split(config.placeholder_token)
        return sum(map(count, parts)) + num_vectors * (len(parts) - 1)

    return counted
