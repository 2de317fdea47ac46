"""Read embeddings from `.pt`, `.bin` and `.safetensors` files and from images.

Four forms exist: the dict of the webuis with `string_to_param`; `{token: tensor}` of diffusers; a safetensors file with
`emb_params`; and one tensor per text encoder, `clip_l` and `clip_g` for SDXL, and `t5xxl` for SD 3.

The webuis name an embedding by its file; only in images the inner name counts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hnloader.embeddings import embedding_images
from hnloader.embeddings.embedding import T5, Embedding
from hnloader.errors import CorruptFileError, HypernetworkError, UnknownFormatError, UnsupportedArchitectureError
from hnloader.formats.checkpoint import ZIP_MAGIC, is_legacy_stream, read_checkpoint
from hnloader.formats.identify import are_vectors, kind_of_bytes, kind_of_names, kind_of_tree
from hnloader.formats.pickles import TensorRef
from hnloader.formats.refusals import check_refusals
from hnloader.formats.safetensors import check_header, decode_value
from hnloader.formats.source import Source, open_source
from hnloader.formats.trees import mapped
from hnloader.texts import as_text, shown, well_formed

__all__ = ["ENCODERS", "EXACT", "SUFFIXES", "header_texts", "load_embedding"]

# Key of a safetensors header that holds name, training and metadata with their types.
EXACT = "hnloader.embedding"
ENCODERS = ("clip_l", "clip_g", T5)
# In order of preference.
SUFFIXES = (".safetensors", ".pt", ".bin", ".png", ".webp")
_MAX_TOKENS = 64
_HYPERNETWORK = "a hypernetwork, not an embedding: load it with hnloader.load"


def load_embedding(path: str | os.PathLike[str], token: str | None = None) -> Embedding:
    """Load a textual-inversion embedding. Nothing in the file is ever executed.

    Args:
        path: A `.pt`, `.bin` or `.safetensors` file, or an image that carries an embedding.
        token: Token of the embedding, for a file that holds several. Default: None.

    Returns:
        The embedding, on the CPU.

    Raises:
        UnsafeFileError: The pickle names or calls something that an embedding never needs.
        UnknownFormatError: The file is something else, which the message names.
        CorruptFileError: The file is damaged, or holds values that are NaN or infinite.
        UnsupportedArchitectureError: The tensors have other shapes than vectors, or `token` is needed or unknown.
        HypernetworkError: The file cannot be opened, or an image needs Pillow and numpy.

    Example:
        >>> import tempfile, torch
        >>> from hnloader.embeddings import Embedding, load_embedding, save_embedding
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_embedding(Embedding(torch.zeros(2, 768), step=100), f"{folder}/style.pt")
        ...     embedding = load_embedding(f"{folder}/style.pt")
        >>> embedding.name, embedding.count, embedding.step
        ('style', 2, 100)
    """
    with open_source(path) as source:
        try:
            if source.head.startswith(ZIP_MAGIC) or is_legacy_stream(source.head):
                return _from_pickle(source, token)
            if source.head[8:9] == b"{":
                return _from_safetensors(source, token)
            if embedding_images.is_image(source.head):
                return _from_mapping(embedding_images.read(source), source.stem, token, named_within=True)
            raise UnknownFormatError(f"{source.label} is {kind_of_bytes(source.head, SUFFIXES)}.")
        except HypernetworkError as error:
            label = "" if str(error).startswith(source.label) else f"{source.label}: "
            raise type(error)(label + _reword(str(error), source.label)) from error


def _from_pickle(source: Source, token: str | None) -> Embedding:
    checkpoint = read_checkpoint(source)
    tree = checkpoint.tree
    if isinstance(tree, dict) and _is_embedding(tree):
        check_refusals(checkpoint.refused, source.label, inert_allowed=False)
        values = mapped(tree, lambda part: checkpoint.read(part) if isinstance(part, TensorRef) else part)
        return _from_mapping(values, source.stem, token)
    check_refusals(checkpoint.refused, source.label, inert_allowed=True)
    raise UnknownFormatError(f"{source.label} is {_describe(tree)}.")


def _from_safetensors(source: Source, token: str | None) -> Embedding:
    if source.path is None:
        raise HypernetworkError("A safetensors embedding is read from a path.")
    check_header(source)  # refuses two tensors or texts of one name, of which other programs take one
    try:
        with safe_open(source.path, framework="pt") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
            if "hypernetwork" in metadata:
                raise UnknownFormatError(f"{source.label} is {_HYPERNETWORK}.")
            kind, own = kind_of_names(names), kind_of_names(["emb_params"])
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names[: _MAX_TOKENS + 1]}
            named = kind == own or bool({"emb_params", *ENCODERS[:2]} & set(names))
            if kind in (None, own) and (len(names) > _MAX_TOKENS or not (named or _are_vectors(shapes))):
                kind = f"a safetensors file of {len(names):,} tensors, not an embedding"
            if kind not in (None, own):
                raise UnknownFormatError(f"{source.label} is {kind}.")
            tensors: dict[object, object] = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CorruptFileError(f"Its safetensors header is damaged ({error}). Download it again.") from error
    return _from_mapping({**_header_facts(metadata), **tensors}, source.stem, token)


def _header_facts(metadata: dict[str, str]) -> dict[object, object]:
    """Return the facts in a header; with their types if hnloader wrote it and it is unchanged."""
    metadata.pop("format", None)
    exact = metadata.pop(EXACT, None)
    if exact is not None:
        try:
            stated = decode_value(json.loads(exact))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CorruptFileError(f"Its {EXACT} is damaged ({error}). Download the file again.") from error
        if isinstance(stated, dict) and header_texts(stated) == metadata:
            return stated
    step = metadata.pop("step", None)
    number = int(step) if step is not None and step.isdecimal() and step.isascii() and len(step) < 16 else step
    about: dict[object, object] = dict(metadata.items())
    about["step"] = number
    return about


def _is_embedding(tree: Mapping[object, object]) -> bool:
    if "string_to_param" in tree or "clip_l" in tree or "clip_g" in tree or "emb_params" in tree:
        return True
    tensors = {key: value.shape for key, value in tree.items() if isinstance(key, str) and isinstance(value, TensorRef)}
    if len(tensors) < len(tree):
        return False
    return kind_of_names(tree) == kind_of_names(["emb_params"]) or (
        kind_of_names(tree) is None and _are_vectors(tensors)
    )


def _are_vectors(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return True for tensors in angle brackets, or of the shape of vectors for a text encoder."""
    return 1 <= len(shapes) <= _MAX_TOKENS and all(
        re.fullmatch("<.+>", name) is not None or are_vectors(shape) for name, shape in shapes.items()
    )


def _from_mapping(
    tree: Mapping[object, object], stem: str, token: str | None, *, named_within: bool = False
) -> Embedding:
    """Return the embedding in the keys of a file; `named_within` if the name in the file counts."""
    texts = _by_text(tree)
    about = {key: value for key, value in texts.items() if not isinstance(value, Tensor)}
    tensors = {key: value for key, value in texts.items() if isinstance(value, Tensor)}
    vectors_g: Tensor | None = None
    word: str | None = None
    if "clip_l" in tree or "clip_g" in tree:
        for encoder in ENCODERS:
            if encoder in about:
                raise UnsupportedArchitectureError(
                    f"Expected a tensor as {encoder}, got {type(about[encoder]).__name__}."
                )
        # `vectors` holds those of a single encoder, whichever it is.
        vectors_g = tensors.pop("clip_g", None)
        vectors = tensors.pop("clip_l", vectors_g)
        vectors_g = None if vectors is vectors_g else vectors_g
        assert vectors is not None
    elif "string_to_param" in tree:
        parameters = about.pop("string_to_param", None)
        about.pop("string_to_token", None)
        tensors.pop("string_to_token", None)
        if not isinstance(parameters, Mapping):
            found = "tensor" if tensors.pop("string_to_param", None) is not None else type(parameters).__name__
            raise UnsupportedArchitectureError(f"Expected {{token: tensor}} as string_to_param, got a {found}.")
        _, vectors = _pick(parameters, token)
    elif "emb_params" in tensors and token is None:
        vectors = tensors.pop("emb_params")
    else:
        word, vectors = _pick(tensors, token)
        tensors = {}
    inner = about.pop("name", None)
    name = (named_within and inner) or stem or inner or (word or "").strip("<>")
    step = about.pop("step", None)
    return Embedding(
        vectors,
        vectors_g,
        name=str(name),
        step=step if type(step) is int else None,
        sd_checkpoint=_text(about.pop("sd_checkpoint", None)),
        sd_checkpoint_name=_text(about.pop("sd_checkpoint_name", None)),
        metadata=dict(about),
        token=word,
        others=tensors,
    )


def _by_text(found: Mapping[Any, object]) -> dict[str, object]:
    result = {str(key): value for key, value in found.items()}
    if len(result) != len(found):
        raise UnsupportedArchitectureError("Two of its keys are equal as text. Keep one of them.")
    return result


def _pick(found: Mapping[Any, object], token: str | None) -> tuple[str, Tensor]:
    vectors = {key: value for key, value in _by_text(found).items() if isinstance(value, Tensor)}
    if token is not None and token in vectors:
        return token, vectors[token]
    if token is None and len(vectors) == 1:
        return next(iter(vectors.items()))
    words = ", ".join(shown(word, 40) for word in vectors) or "none"
    asked = "" if token is None else f", but not {shown(token)}"
    raise UnsupportedArchitectureError(f"It holds {len(vectors)} embeddings ({words}){asked}. Pick one by `token`.")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _describe(tree: object) -> str:
    """Describe a pickled object that is something else than an embedding."""
    kind = kind_of_tree(tree)
    if kind is None:
        return _HYPERNETWORK
    if isinstance(tree, dict) and "key per width" not in kind and "embedding" not in kind:
        return kind
    if isinstance(tree, dict):
        keys = ", ".join(shown(as_text(key, 40)) for key in islice(tree, 4)) or "none"
        return f"a dict of an unknown kind (keys: {keys}), not an embedding"
    what = (
        f"single tensor of shape {list(tree.shape)}" if isinstance(tree, TensorRef) else f"saved {type(tree).__name__}"
    )
    return f"a {what}, not an embedding: that is a dict"


def _reword(message: str, label: str) -> str:
    """Reword a message of the readers of hypernetworks. The label, which may contain the word, stays."""
    parts = (_FOR_HYPERNETWORKS.sub(_for_embeddings, part) for part in message.split(label))
    return label.join(parts)


# Not in "a hypernetwork's training", nor in "a hypernetwork, not an embedding".
_FOR_HYPERNETWORKS = re.compile(r"\b([Aa]|[Tt]he) hypernetwork\b(?!'s|, not an embedding)")


def _for_embeddings(match: re.Match[str]) -> str:
    article = match[1] + "n" if match[1] in "Aa" else match[1]
    return f"{article} embedding"


def header_texts(about: Mapping[str, object]) -> dict[str, str]:
    """Return the plain header for other programs: text, and JSON for other values."""
    texts: dict[str, str] = {}
    for key, value in about.items():
        if value is None or value == "":
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str, skipkeys=True)
        texts[well_formed(key)] = well_formed(text)
    return texts
