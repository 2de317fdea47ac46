"""Embeddings in `.pt`, `.bin`, `.safetensors` and images.

Four forms exist: the webui's dict with `string_to_param`; diffusers' `{token: tensor}`; a safetensors file with
`emb_params`; and one tensor for each text encoder, `clip_l` and `clip_g` for SDXL, and `t5xxl` for SD 3.

The webuis call an embedding by its file's name; only in images the name within counts.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hnloader.embeddings import in_images
from hnloader.embeddings.embedding import T5, Embedding
from hnloader.errors import CorruptFileError, HypernetworkError, UnknownFormatError, UnsupportedArchitectureError
from hnloader.files import replacing
from hnloader.formats.checkpoint import ZIP_MAGIC, is_legacy_stream, read_checkpoint
from hnloader.formats.identify import are_vectors, kind_of_bytes, kind_of_names, kind_of_tree
from hnloader.formats.outgoing import lazily
from hnloader.formats.pickles import TensorRef
from hnloader.formats.refusals import check_refusals
from hnloader.formats.safetensors import check_header, decode_value, encode_value, write_tensors
from hnloader.formats.source import Source, open_source
from hnloader.formats.torch_zip import write_tree
from hnloader.formats.trees import mapped
from hnloader.texts import as_text, shown, well_formed

Form = Literal["webui", "diffusers"]
# The webui's own token for the vectors, and the id that the first trainer gave it.
_STAR, _STAR_ID = "*", 265
# The key of a safetensors header that holds name, training and metadata with their types.
_EXACT = "hnloader.embedding"
_ENCODERS = ("clip_l", "clip_g", T5)
_WIDTH_G = 1280
# What has a meaning of its own in one of the forms.
_KEYS = frozenset(
    {"string_to_token", "string_to_param", "name", "step", "sd_checkpoint", "sd_checkpoint_name"}
    | {*_ENCODERS, "emb_params", "format", _EXACT}
)


def load_embedding(path: str | os.PathLike[str], token: str | None = None) -> Embedding:
    """Load a textual-inversion embedding. Nothing in the file is ever executed.

    Args:
        path: a `.pt`, `.bin` or `.safetensors` file, or an image in which a webui embedded one.
        token: which one, for a file that holds several.

    Raises:
        UnsafeFileError: a pickle that names or calls something that no embedding needs.
        UnknownFormatError: something else; the message says what it is.
        CorruptFileError: damaged, or with values that are not finite.
        UnsupportedArchitectureError: its tensors are no vectors, or there are several and `token` picks none.
        HypernetworkError: it cannot be opened, or it is an image and Pillow or numpy is not installed.
    """
    with open_source(path) as source:
        try:
            if source.head.startswith(ZIP_MAGIC) or is_legacy_stream(source.head):
                return _from_pickle(source, token)
            if source.head[8:9] == b"{":
                return _from_safetensors(source, token)
            if in_images.is_image(source.head):
                return _from_mapping(in_images.read(source), source.stem, token, named_within=True)
            raise UnknownFormatError(f"{source.label} is {kind_of_bytes(source.head)}")
        except HypernetworkError as error:
            label = "" if str(error).startswith(source.label) else f"{source.label}: "
            raise type(error)(label + _about_embeddings(str(error), source.label)) from error


def save_embedding(
    embedding: Embedding,
    path: str | os.PathLike[str],
    *,
    form: Form = "webui",
    token: str | None = None,
    overwrite: bool = True,
    sources: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Save an embedding: `.pt`, `.bin`, `.safetensors` or `.png`, by the path's ending.

    Args:
        embedding: what to save. Where the form has no place for its name and training, only the vectors are.
        path: `.pt` and `.safetensors` take both forms, `.bin` is diffusers', `.png` the webui's.
        form: "webui" is what webuis train and load; "diffusers" is `{token: tensor}`. An embedding for SDXL
            or SD 3 has one form, a tensor for each text encoder.
        token: the word in diffusers' form; default the word of the file that it was loaded from, else `<name>`.
        overwrite: Replace what stands there; False raises an error instead.
        sources: The files that it was made of. Who cannot read them cannot read the new file.

    Raises:
        ExistingFileError: The file exists and is to stay.
        UnknownFormatError: the ending is another one.
        UnsupportedArchitectureError: an image of an embedding for SDXL, which no webui writes or reads.
        HypernetworkError: the file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    writers: dict[str, Callable[[Path], None]] = {
        ".pt": lambda file: _write_pickle(_tree(embedding, form, token), file),
        ".bin": lambda file: _write_pickle(_tree(embedding, "diffusers", token), file),
        ".safetensors": lambda file: _write_safetensors(embedding, file, form, token),
        ".png": lambda file: in_images.write(_image_tree(embedding), file, in_images.card(embedding)),
    }
    if suffix not in writers:
        near = difflib.get_close_matches(suffix, writers, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UnknownFormatError(f"{target} ends in {shown(suffix)}; {', '.join(writers)} were expected.{hint}")
    if target.is_dir():
        raise HypernetworkError(f"{target} is a folder; name a file")
    with replacing(target, overwrite=overwrite, sources=sources) as temporary:
        writers[suffix](temporary)


# -- reading


def _from_pickle(source: Source, token: str | None) -> Embedding:
    checkpoint = read_checkpoint(source)
    tree = checkpoint.tree
    if isinstance(tree, dict) and _is_embedding(tree):
        check_refusals(checkpoint.refused, source.label, inert_allowed=False)
        values = mapped(tree, lambda part: checkpoint.read(part) if isinstance(part, TensorRef) else part)
        return _from_mapping(values, source.stem, token)
    check_refusals(checkpoint.refused, source.label, inert_allowed=True)
    raise UnknownFormatError(f"{source.label} is {_kind(tree)}")


def _from_safetensors(source: Source, token: str | None) -> Embedding:
    if source.path is None:
        raise HypernetworkError("a safetensors embedding is read from a path")
    check_header(source)  # other programs would take one of two tensors or texts of one name
    try:
        with safe_open(source.path, framework="pt") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
            if "hypernetwork" in metadata:
                raise UnknownFormatError(f"{source.label} is {_HYPERNETWORK}")
            kind = kind_of_names(names)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names[: MAX_TOKENS + 1]}
            if kind is None and not {"emb_params", *_ENCODERS[:2]} & set(names) and not _are_vectors(shapes):
                kind = f"a safetensors file of {len(names):,} tensors, not an embedding"
            if len(names) > MAX_TOKENS or (kind is not None and kind != kind_of_names(["emb_params"])):
                raise UnknownFormatError(f"{source.label} is {kind}")
            tensors: dict[object, object] = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CorruptFileError(f"its safetensors header is damaged ({error}); copy or download it again") from error
    return _from_mapping({**_about(metadata), **tensors}, source.stem, token)


def _about(metadata: dict[str, str]) -> dict[object, object]:
    """What the texts of a header say: with their types where hnloader wrote it and nobody changed it since."""
    metadata.pop("format", None)
    exact = metadata.pop(_EXACT, None)
    if exact is not None:
        try:
            stated = decode_value(json.loads(exact))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CorruptFileError(f"its {_EXACT} is damaged ({error}); download the file again") from error
        if isinstance(stated, dict) and _texts(stated) == metadata:
            return stated
    step = metadata.pop("step", None)
    number = int(step) if step is not None and step.isdecimal() and step.isascii() and len(step) < 16 else step
    about: dict[object, object] = dict(metadata.items())
    about["step"] = number
    return about


MAX_TOKENS = 64


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
    """True where tensors whose names say nothing are as large as vectors for a text encoder."""
    return 1 <= len(shapes) <= MAX_TOKENS and all(
        re.fullmatch("<.+>", name) is not None or are_vectors(shape) for name, shape in shapes.items()
    )


def _from_mapping(
    tree: Mapping[object, object], stem: str, token: str | None, *, named_within: bool = False
) -> Embedding:
    """The embedding in a file's keys, tensors read; `named_within` where the name in the file is its name."""
    texts = _by_text(tree)
    about = {key: value for key, value in texts.items() if not isinstance(value, Tensor)}
    tensors = {key: value for key, value in texts.items() if isinstance(value, Tensor)}
    vectors_g: Tensor | None = None
    word: str | None = None
    if "clip_l" in tree or "clip_g" in tree:
        for encoder in _ENCODERS:
            if encoder in about:
                raise UnsupportedArchitectureError(f"found {type(about[encoder]).__name__} as {encoder}, not a tensor")
        # An embedding for one of the two encoders has its vectors in `vectors`, which tells them by their width.
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
            raise UnsupportedArchitectureError(f"found a {found} as string_to_param, not {{token: tensor}}")
        _, vectors = _one_of(parameters, token)
    elif "emb_params" in tensors and token is None:
        vectors = tensors.pop("emb_params")
    else:
        word, vectors = _one_of(tensors, token)
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
        raise UnsupportedArchitectureError("two of its keys are the same as text; keep one of them")
    return result


def _one_of(found: Mapping[Any, object], token: str | None) -> tuple[str, Tensor]:
    vectors = {key: value for key, value in _by_text(found).items() if isinstance(value, Tensor)}
    if token is not None and token in vectors:
        return token, vectors[token]
    if token is None and len(vectors) == 1:
        return next(iter(vectors.items()))
    words = ", ".join(shown(word, 40) for word in vectors) or "none"
    asked = "" if token is None else f" and none named {shown(token)}"
    raise UnsupportedArchitectureError(f"it holds {len(vectors)} embeddings ({words}){asked}; pick one by `token`")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


_HYPERNETWORK = "a hypernetwork, not an embedding: load it with hnloader.load"


def _kind(tree: object) -> str:
    """What a pickled object is that is not an embedding."""
    kind = kind_of_tree(tree)
    if kind is None:
        return _HYPERNETWORK
    if isinstance(tree, dict) and "key per width" not in kind and "embedding" not in kind:
        return kind
    if isinstance(tree, dict):
        keys = ", ".join(shown(as_text(key, 40)) for key in islice(tree, 4)) or "none"
        return f"a dict of a kind that is not known here (its keys: {keys}), not an embedding"
    what = (
        f"single tensor of shape {list(tree.shape)}" if isinstance(tree, TensorRef) else f"saved {type(tree).__name__}"
    )
    return f"a {what}, not an embedding: that is a dict"


def _about_embeddings(message: str, label: str) -> str:
    """A message of the readers that hypernetworks have too, for a file that should be an embedding.

    The label may be a path with the word in it, and stays.
    """
    parts = (_FOR_HYPERNETWORKS.sub(_for_embeddings, part) for part in message.split(label))
    return label.join(parts).replace(".pt, .safetensors or .hns file", ".pt, .bin or .safetensors file, or an image")


# Not in "a hypernetwork's training", nor in "a hypernetwork, not an embedding".
_FOR_HYPERNETWORKS = re.compile(r"\b([Aa]|[Tt]he) hypernetwork\b(?!'s|, not an embedding)")


def _for_embeddings(match: re.Match[str]) -> str:
    article = match[1] + "n" if match[1] in "Aa" else match[1]
    return f"{article} embedding"


# -- writing


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
    """Raise UnsupportedArchitectureError for metadata that would be read back as something else."""
    for key in embedding.metadata:
        if type(key) is not str or key in _KEYS:
            raise UnsupportedArchitectureError(
                f"metadata: the key {shown(key)} stands for something else in an embedding's file. Rename it."
            )


def _token(embedding: Embedding, token: str | None) -> str:
    return token or embedding.token or f"<{embedding.name or 'embedding'}>"


def _by_encoder(embedding: Embedding, form: Form) -> dict[str, Tensor] | None:
    """The vectors under the key of each encoder; None for an embedding of one encoder, which has other forms."""
    if embedding.vectors_g is not None:
        return {"clip_l": embedding.vectors, "clip_g": embedding.vectors_g, **embedding.others}
    second_only = embedding.width == _WIDTH_G
    if T5 in embedding.others or (second_only and form == "webui"):
        return {"clip_g" if second_only else "clip_l": embedding.vectors, **embedding.others}
    return None


def _image_tree(embedding: Embedding) -> dict[str, object]:
    if _by_encoder(embedding, "webui") is not None:
        raise UnsupportedArchitectureError(
            f"an embedding for {embedding.made_for} has no form in an image that a webui reads; save it as .safetensors"
        )
    _check_keys(embedding)
    for key, value in embedding.metadata.items():
        if not in_images.keeps(key, value):
            raise UnsupportedArchitectureError(
                f"metadata: {shown(key)} would be read back as another value or type, because embeddings in images "
                "are JSON. Save as .pt, or change it."
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
        raise UnsupportedArchitectureError(f"the token {shown(min(tensors))} is a key of its metadata too. Rename one.")
    try:
        exact = json.dumps(encode_value(about))
    except UnsupportedArchitectureError as error:
        raise UnsupportedArchitectureError(f"{error}; save as .pt, or change it") from error
    write_tensors(path, tensors, {"format": "pt", **_texts(about), _EXACT: exact})


def _texts(about: Mapping[str, object]) -> dict[str, str]:
    """What other programs read of it: text, and JSON for the rest."""
    texts: dict[str, str] = {}
    for key, value in about.items():
        if value is None or value == "":
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str, skipkeys=True)
        texts[well_formed(key)] = well_formed(text)
    return texts


def _write_pickle(tree: dict[str, object], path: Path) -> None:
    """As webuis read it: what newer versions of torch.save add to the archive, AUTOMATIC1111 refuses."""
    write_tree(path, lazily(tree))
