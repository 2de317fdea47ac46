"""Train a textual-inversion embedding; the UNet and the text encoders are frozen."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnloader.embeddings import Embedding, load_embedding, save_embedding
from hnloader.errors import ConfigError
from hnloader.pipelines import Model
from hnloader.training.adapters import Adapter, settings_text, step_count
from hnloader.training.cache import Cache
from hnloader.training.captions import token_counter
from hnloader.training.config import Config
from hnloader.training.denoiser import Denoiser, EncodedText

_PARTS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


class EmbeddingAdapter(Adapter):
    """The vectors of a placeholder token."""

    def __init__(self, config: Config, denoiser: Denoiser) -> None:
        self.config, self.denoiser = config, denoiser
        pipeline = denoiser.pipeline
        parts = [part for part in _PARTS if getattr(pipeline, part[1], None) is not None]
        vectors, self.previous_steps = _initial_vectors(config, pipeline, parts)
        _, max_tokens = token_counter(pipeline.tokenizer)
        if len(vectors[0]) > max_tokens:
            raise ConfigError(
                f"Setting 'embedding.num_vectors': expected at most {max_tokens}, the tokens that the text encoder "
                f"reads, got {len(vectors[0])} vectors."
            )
        self.parameters = [nn.Parameter(given.float().to(denoiser.device)) for given in vectors]
        self._tokens = [
            PlaceholderToken(pipeline, *part, config.placeholder_token, vectors)
            for part, vectors in zip(parts, self.parameters, strict=True)
        ]

    @contextlib.contextmanager
    def enabled(self, *, training: bool) -> Iterator[None]:
        """See `Adapter`."""
        with contextlib.ExitStack() as stack:
            for token in self._tokens:
                stack.enter_context(token.added())
            yield

    def texts(self, captions: Sequence[str], cache: Cache) -> list[EncodedText]:
        """See `Adapter`."""
        token = self.config.placeholder_token
        return [
            self.denoiser.encode_text(caption, trained=True) if token in caption else cache.text(caption)
            for caption in captions
        ]

    def save(self, path: Path, step: int, model: Model) -> None:
        """See `Adapter`."""
        vectors = [parameter.detach().cpu().clone() for parameter in self.parameters]
        embedding = Embedding(
            vectors[0],
            vectors[1] if len(vectors) > 1 else None,
            name=self.config.name,
            step=step,
            sd_checkpoint=model.hash,
            sd_checkpoint_name=model.name,
            metadata={"training_config": settings_text(self.config)},
        )
        save_embedding(embedding, path)


class PlaceholderToken:
    """A token with trained vectors in one text encoder, while `added` is active.

    A copy of the tokenizer has the token. Hooks put the vectors into the input of the encoder, whose weights do not
    change.
    """

    def __init__(self, pipeline: Any, tokenizer: str, encoder: str, token: str, vectors: nn.Parameter) -> None:
        self._pipeline, self._tokenizer, self._vectors = pipeline, tokenizer, vectors
        self._embedding: nn.Module = getattr(pipeline, encoder).get_input_embeddings()
        self._extended = copy.deepcopy(getattr(pipeline, tokenizer))
        # diffusers' names for several vectors: w, w_1, w_2, ...
        tokens = [token, *(f"{token}_{index}" for index in range(1, len(vectors)))]
        vocabulary = self._extended.get_vocab()
        # CLIP's words end in </w>; some releases of transformers add an existing token again.
        known = [each for each in tokens if each in vocabulary or f"{each.lower()}</w>" in vocabulary]
        if known or self._extended.add_tokens(tokens) != len(tokens):
            raise ConfigError(
                f"Setting 'embedding.placeholder_token': {token!r} is a word of the model's tokenizer. "
                "Choose another word."
            )
        self._ids: list[int] = self._extended.convert_tokens_to_ids(tokens)
        self._positions: list[tuple[Tensor, int]] = []

    @contextlib.contextmanager
    def added(self) -> Iterator[None]:
        """Add the token to the tokenizer and the vectors to the encoder."""
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
        self._positions = [(ids == id_, index) for index, id_ in enumerate(self._ids)]
        for position, _ in self._positions:
            ids = ids.masked_fill(position, 0)
        return (ids, *given[1:])

    def _after_lookup(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        for position, index in self._positions:
            output = torch.where(position.unsqueeze(-1), self._vectors[index].to(output.dtype), output)
        return output


def _initial_vectors(config: Config, pipeline: Any, parts: list[tuple[str, str]]) -> tuple[list[Tensor], int]:
    """Return a tensor [vectors, width] per text encoder, and the number of steps they were trained for."""
    tables = [getattr(pipeline, encoder).get_input_embeddings().weight.detach() for _, encoder in parts]
    if config.start_from:
        found = load_embedding(config.start_from)
        given = [found.vectors] if found.vectors_g is None else [found.vectors, found.vectors_g]
        widths, wanted = [each.shape[1] for each in given], [table.shape[1] for table in tables]
        if widths != wanted:
            raise ConfigError(
                f"Setting 'start_from': expected vectors of {' and '.join(map(str, wanted))} values for this model, "
                f"got {' and '.join(map(str, widths))} in {config.start_from}."
            )
        return given, step_count(found.step)
    vectors: list[Tensor] = []
    for (tokenizer, _), table in zip(parts, tables, strict=True):
        ids = getattr(pipeline, tokenizer)(config.embedding.initialization_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError("Setting 'embedding.initialization_text' is empty. Give a word such as 'drawing'.")
        vectors.append(table[[ids[index % len(ids)] for index in range(config.embedding.num_vectors)]].clone().cpu())
    return vectors, 0
