"""Write embeddings to `.pt`, `.bin` and `.safetensors` files and into images."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from torch import Tensor

from hnloader.embeddings import embedding_images
from hnloader.embeddings.embedding import T5, Embedding
from hnloader.embeddings.embedding_reader import ENCODERS, EXACT, header_texts
from hnloader.errors import HypernetworkError, UnknownFormatError, UnsupportedArchitectureError
from hnloader.files import replacing
from hnloader.formats.outgoing import lazily
from hnloader.formats.safetensors import encode_value, write_tensors
from hnloader.formats.torch_zip import write_tree
from hnloader.texts import shown

__all__ = ["EMBEDDINGS_ONLY", "save_embedding", "writer_for"]

Form = Literal["webui", "diffusers"]
# Suffixes that are written for embeddings and not for hypernetworks.
EMBEDDINGS_ONLY = (".bin", ".png")
# The webui's token for the vectors, and its id in the first trainer.
_STAR, _STAR_ID = "*", 265
_WIDTH_G = 1280
# Keys with a meaning in one of the forms.
_KEYS = frozenset(
    {"string_to_token", "string_to_param", "name", "step", "sd_checkpoint", "sd_checkpoint_name"}
    | {*ENCODERS, "emb_params", "format", EXACT}
)


def save_embedding(
    embedding: Embedding,
    path: str | os.PathLike[str],
    *,
    form: Form = "webui",
    token: str | None = None,
    overwrite: bool = True,
    sources: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Save an embedding as `.pt`, `.bin`, `.safetensors` or `.png`, by the suffix of the path.

    Args:
        embedding: The embedding. Forms without room for its name and training keep the vectors alone.
        path: The file to write. `.pt` and `.safetensors` take both forms, `.bin` that of diffusers, `.png` that of the
            webuis.
        form: "webui" is the form that webuis train and load; "diffusers" is `{token: tensor}`. An embedding for SDXL
            or SD 3 has one form, a tensor per text encoder. Default: "webui".
        token: Token in the form of diffusers. Default: the token that it was loaded with, otherwise `<name>`.
        overwrite: Replace an existing file; otherwise raise an error. Default: True.
        sources: Files that it was made from. Users who cannot read them cannot read the new file. Default: none.

    Raises:
        ExistingFileError: The file exists, and `overwrite` is False.
        UnknownFormatError: The suffix is unknown.
        UnsupportedArchitectureError: The form cannot hold the embedding or its metadata.
        HypernetworkError: The file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from hnloader.embeddings import Embedding, load_embedding, save_embedding
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_embedding(Embedding(torch.zeros(1, 768)), f"{folder}/style.bin", token="<style>")
        ...     load_embedding(f"{folder}/style.bin").token
        '<style>'
    """
    target = Path(path)
    write = writer_for(target, form, token)
    with replacing(target, overwrite=overwrite, sources=sources) as temporary:
        write(embedding, temporary)


def writer_for(target: Path, form: Form = "webui", token: str | None = None) -> Callable[[Embedding, Path], None]:
    """Return a function that writes an embedding to a path in the format of `target`.

    Raises:
        UnknownFormatError: The suffix is unknown.
        HypernetworkError: It is a folder.
    """
    writers: dict[str, Callable[[Embedding, Path], None]] = {
        ".pt": lambda embedding, file: write_tree(file, lazily(_tree(embedding, form, token))),
        ".bin": lambda embedding, file: write_tree(file, lazily(_tree(embedding, "diffusers", token))),
        ".safetensors": lambda embedding, file: _write_safetensors(embedding, file, form, token),
        ".png": lambda embedding, file: embedding_images.write(
            _image_tree(embedding), file, embedding_images.card(embedding)
        ),
    }
    suffix = target.suffix.lower()
    if suffix not in writers:
        near = difflib.get_close_matches(suffix, writers, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UnknownFormatError(f"{target}: found the suffix {shown(suffix)}. Give one of {', '.join(writers)}.{hint}")
    if target.is_dir():
        raise HypernetworkError(f"{target}: this is a folder. Name a file.")
    return writers[suffix]


def _tree(embedding: Embedding, form: Form, token: str | None) -> dict[str, object]:
    _check_keys(embedding)
    if (encoders := _by_encoder(embedding, form)) is not None:
        return dict(encoders)
    if form == "diffusers":
        return {_token(embedding, token): embedding.vectors}
    return {
        "string_to_token": {_STAR: _STAR_ID},
        "string_to_param": {_STAR: embedding.vectors},
        "name": embedding.name,
        "step": embedding.step,
        "sd_checkpoint": embedding.sd_checkpoint,
        "sd_checkpoint_name": embedding.sd_checkpoint_name,
        **embedding.metadata,
        **embedding.others,
    }


def _check_keys(embedding: Embedding) -> None:
    """Raise UnsupportedArchitectureError for keys with a meaning in a form."""
    for key in embedding.metadata:
        if type(key) is not str or key in _KEYS:
            raise UnsupportedArchitectureError(
                f"Metadata: the key {shown(key)} has a fixed meaning in the file of an embedding. Rename it."
            )


def _token(embedding: Embedding, token: str | None) -> str:
    return token or embedding.token or f"<{embedding.name or 'embedding'}>"


def _by_encoder(embedding: Embedding, form: Form) -> dict[str, Tensor] | None:
    """Return the vectors by encoder; None for an embedding with other forms."""
    if embedding.vectors_g is not None:
        return {"clip_l": embedding.vectors, "clip_g": embedding.vectors_g, **embedding.others}
    second_only = embedding.width == _WIDTH_G
    if T5 in embedding.others or (second_only and form == "webui"):
        return {"clip_g" if second_only else "clip_l": embedding.vectors, **embedding.others}
    return None


def _image_tree(embedding: Embedding) -> dict[str, object]:
    if _by_encoder(embedding, "webui") is not None:
        raise UnsupportedArchitectureError(
            f"{embedding.name or 'Embedding'}: webuis cannot read an embedding for {embedding.made_for} from an image. "
            "Save it as .safetensors."
        )
    _check_keys(embedding)
    for key, value in embedding.metadata.items():
        if not embedding_images.json_keeps(key, value):
            raise UnsupportedArchitectureError(
                f"Metadata: the JSON of an image changes the value or type of {shown(key)}. Save as .pt, or change it."
            )
    return _tree(embedding, "webui", None)


def _write_safetensors(embedding: Embedding, path: Path, form: Form, token: str | None) -> None:
    tensors = _by_encoder(embedding, form)
    if tensors is None and form == "diffusers":
        tensors = {_token(embedding, token): embedding.vectors}
    elif tensors is None:
        tensors = {"emb_params": embedding.vectors, **embedding.others}
    _check_keys(embedding)
    about: dict[str, object] = {
        "name": embedding.name,
        "step": embedding.step,
        "sd_checkpoint": embedding.sd_checkpoint,
        "sd_checkpoint_name": embedding.sd_checkpoint_name,
        **embedding.metadata,
    }
    if tensors.keys() & about.keys():
        raise UnsupportedArchitectureError(f"The token {shown(min(tensors))} is a key of the metadata. Rename one.")
    try:
        exact = json.dumps(encode_value(about))
    except UnsupportedArchitectureError as error:
        raise UnsupportedArchitectureError(f"{error} Save as .pt, or change it.") from error
    write_tensors(path, tensors, {"format": "pt", **header_texts(about), EXACT: exact})
