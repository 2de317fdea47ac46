"""Facts about the file of an embedding."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hnloader.embeddings.embedding import Embedding
from hnloader.embeddings.embedding_reader import load_embedding
from hnloader.errors import UnknownFormatError
from hnloader.files import sha256_of
from hnloader.texts import as_text, plain

__all__ = ["EmbeddingInfo", "inspect_embedding", "read_if_embedding"]

_LONGEST_FACT = 1_000  # characters of a name
_MOST_TEXT = 1 << 20  # characters of metadata


@dataclass(frozen=True)
class EmbeddingInfo:
    """The facts about one file.

    Attributes:
        path: The file.
        size: Size in bytes.
        embedding: The embedding.
    """

    path: Path
    size: int
    embedding: Embedding

    @property
    def widths(self) -> list[int]:
        """Widths of the vectors, one per text encoder."""
        found = [self.embedding.vectors, self.embedding.vectors_g, *self.embedding.others.values()]
        return [tensor.shape[1] for tensor in found if tensor is not None and tensor.dim() == 2]

    @property
    def dtype(self) -> str:
        """Name of the torch dtype of the vectors."""
        dtype = self.embedding.vectors.dtype
        return str(dtype).removeprefix("torch.")

    @property
    def sha256(self) -> str:
        """SHA-256 of the file in hex."""
        return sha256_of(self.path)

    def to_dict(self, hashes: bool = True) -> dict[str, object]:
        """Return the facts as plain values for JSON."""
        embedding = self.embedding
        texts = {
            "name": embedding.name,
            "token": embedding.token,
            "checkpoint": embedding.sd_checkpoint,
            "checkpoint_name": embedding.sd_checkpoint_name,
        }
        result: dict[str, object] = {
            "path": str(self.path),
            "kind": "embedding",
            **{key: None if text is None else as_text(text, _LONGEST_FACT) for key, text in texts.items()},
            "size": self.size,
            "made_for": embedding.made_for,
            "vectors": embedding.count,
            "widths": self.widths,
            "dtype": self.dtype,
            "step": embedding.step,
            "metadata": plain(embedding.metadata, _MOST_TEXT),
        }
        return result | ({"sha256": self.sha256} if hashes else {})


def inspect_embedding(path: str | os.PathLike[str]) -> EmbeddingInfo:
    """Return the facts about the file of an embedding. Raises the errors of `load_embedding`."""
    file = Path(path)
    return EmbeddingInfo(file, file.stat().st_size, load_embedding(file))


def read_if_embedding(path: Path) -> EmbeddingInfo | None:
    """Return the facts about the file of an embedding; None if it is something else.

    Raises:
        HypernetworkError: It is an embedding, but damaged or not safe.
    """
    try:
        return inspect_embedding(path)
    except UnknownFormatError:
        return None
