"""Train a textual-inversion embedding; the UNet and the text encoders are frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hnloader.embeddings import Embedding, load_embedding, save_embedding
from hnloader.embeddings.prompt_words import PlaceholderTokens, text_parts
from hnloader.errors import ConfigError, HypernetworkError
from hnloader.training.adapters import Adapter, NamedModel, settings_text, step_count
from hnloader.training.cache import Cache
from hnloader.training.captions import token_counter
from hnloader.training.config import Config
from hnloader.training.denoiser import Denoiser, EncodedText


class EmbeddingAdapter(Adapter):
    """The vectors of a placeholder token."""

    def __init__(self, config: Config, denoiser: Denoiser) -> None:
        self.config, self.denoiser = config, denoiser
        pipeline = denoiser.pipeline
        parts = text_parts(pipeline)
        vectors, self.previous_steps = _initial_vectors(config, pipeline, parts)
        _, max_tokens = token_counter(pipeline.tokenizer)
        if len(vectors[0]) > max_tokens:
            raise ConfigError(
                f"Setting 'embedding.num_vectors': expected at most {max_tokens}, the tokens that the text encoder "
                f"reads, got {len(vectors[0])} vectors."
            )
        self.parameters = [nn.Parameter(given.float().to(denoiser.device)) for given in vectors]
        try:
            self._tokens = [
                PlaceholderTokens(pipeline, *part, {config.placeholder_token: vectors})
                for part, vectors in zip(parts, self.parameters, strict=True)
            ]
        except HypernetworkError as error:
            raise ConfigError(f"Setting 'embedding.placeholder_token': {error}") from error

    @contextlib.contextmanager
    def enabled(self, *, training: bool) -> Iterator[None]:
        """See `Adapter`."""
        with contextlib.ExitStack() as stack:
            for token in self._tokens:
                stack.enter_context(token.added())
            yield

    def texts(self, captions: Sequence[str], cache: Cache) -> list[EncodedText]:
        """Encode captions, with gradients for those that contain the token."""
        token = self.config.placeholder_token
        return [
            self.denoiser.encode_text(caption, trained=True) if token in caption else cache.text(caption)
            for caption in captions
        ]

    def save(self, path: Path, step: int, model: NamedModel) -> None:
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
