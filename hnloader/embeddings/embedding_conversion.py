"""Convert embeddings between their formats, and verify the result."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hnloader.embeddings.embedding import Embedding
from hnloader.embeddings.embedding_reader import load_embedding
from hnloader.embeddings.embedding_writer import writer_for
from hnloader.errors import HypernetworkError, VerificationError
from hnloader.files import replacing, same_file
from hnloader.formats.outgoing import tensor_bytes
from hnloader.formats.trees import canonical

__all__ = ["convert_embedding", "is_embedding_result", "verify_embedding"]


_TRAINING = ("step", "sd_checkpoint", "sd_checkpoint_name", "metadata")


def convert_embedding(
    source: Path, target: Path, *, dtype: str | None = None, overwrite: bool = True
) -> tuple[str, ...]:
    """Convert the file of an embedding to the format of `target`; the file appears when it is verified.

    Args:
        source: The file. It stays unchanged.
        target: The file to write, `.pt`, `.bin`, `.safetensors` or `.png`.
        dtype: Type of the vectors. Default: None, as stored.
        overwrite: Replace an existing file; otherwise raise an error. Default: True.

    Returns:
        The facts in the source that the target has no place for: those about its training, for `.bin`.

    Raises:
        HypernetworkError: The source cannot be read, the target cannot be written or hold it, or they are one file.
    """
    if same_file(source, target):
        raise HypernetworkError(f"{target}: this is the source itself. Write the result elsewhere.")
    embedding = _cast(load_embedding(source), dtype)
    write = writer_for(target)
    with replacing(target, overwrite=overwrite, sources=[source]) as temporary:
        write(embedding, temporary)
        return _check_equal(embedding, load_embedding(temporary), target)


def verify_embedding(source: Path, target: Path, dtype: str | None = None) -> tuple[str, ...]:
    """Verify that `target` holds the embedding of `source`, and return what `convert_embedding` returns.

    Raises:
        VerificationError: They differ.
    """
    return _check_equal(_cast(load_embedding(source), dtype), load_embedding(target), target)


def is_embedding_result(source: Path, target: Path, dtype: str | None) -> bool:
    """Return True if `target` is what `convert_embedding` would write."""
    try:
        verify_embedding(source, target, dtype)
    except HypernetworkError:
        return False
    return True


def _cast(embedding: Embedding, dtype: str | None) -> Embedding:
    if dtype is not None:
        kind: torch.dtype = getattr(torch, dtype)
        embedding.vectors = embedding.vectors.to(kind)
        embedding.vectors_g = None if embedding.vectors_g is None else embedding.vectors_g.to(kind)
        embedding.others = {key: tensor.to(kind) for key, tensor in embedding.others.items()}
    return embedding


def _check_equal(expected: Embedding, found: Embedding, path: Path) -> tuple[str, ...]:
    """Raise VerificationError for a difference; return the facts that the form of diffusers has no place for."""
    lost = tuple(what for what in _TRAINING if getattr(expected, what)) if path.suffix.lower() == ".bin" else ()
    for what in ("vectors", "vectors_g", "others", *_TRAINING):
        if what not in lost and canonical(getattr(expected, what), _bits) != canonical(getattr(found, what), _bits):
            raise VerificationError(f"{path}: {what} differ from those of the source. Convert it again.")
    return lost


def _bits(tensor: Tensor) -> object:
    return tensor.dtype, tuple(tensor.shape), bytes(tensor_bytes(tensor.contiguous()))
