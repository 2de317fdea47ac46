"""What is trained: a hypernetwork or an embedding, seen by the loop in the same way."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hnloader.attention import attach
from hnloader.embeddings import Embedding, load_embedding, save_embedding
from hnloader.errors import ConfigError, HypernetworkError
from hnloader.loading import load, save
from hnloader.network import Hypernetwork
from hnloader.training import schema
from hnloader.training.cache import Cache
from hnloader.training.config import Config
from hnloader.training.denoiser import Denoiser, Text, token_counter
from hnloader.training.initialization import initialize
from hnloader.training.optimizers import check_state


class Adapter(Protocol):
    """What the loop asks of it."""

    parameters: list[nn.Parameter]
    # Steps that the file to start from had.
    before: int

    def ready(self) -> contextlib.AbstractContextManager[object]:
        """While this holds, `acting` begins and ends quickly; between, the model need not be as it is alone."""

    def acting(self, *, training: bool) -> contextlib.AbstractContextManager[object]:
        """While this holds, the model shows what is trained; with `training`, gradients and dropout are on."""

    def idle(self) -> contextlib.AbstractContextManager[object]:
        """Within `acting`: the model is as it is without what is trained."""

    def texts(self, captions: Sequence[str], cache: Cache) -> list[Text]:
        """What the text encoders make of captions; with gradients where the text is what is trained."""

    def save(self, path: Path, step: int, checkpoint: Checkpoint) -> None:
        """Write it atomically, as it was at `step`."""


class Checkpoint(Protocol):
    """The model's name and short hash, for what is written; `hnloader.pipelines.Model` is one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def hash(self) -> str | None:
        """The first ten hexadecimal digits of the file's sha256, None for a folder."""


def make_adapter(config: Config, denoiser: Denoiser) -> Adapter:
    """The adapter that the configuration names.

    Raises:
        ConfigError: it does not fit the model, or `start_from` is not what is to be trained.
    """
    if config.method == "hypernetwork":
        return HypernetworkAdapter(config, denoiser)
    return EmbeddingAdapter(config, denoiser)


def _config_text(config: Config) -> str:
    return json.dumps(schema.plain(config), sort_keys=True)


# -- hypernetworks


class HypernetworkAdapter:
    """A hypernetwork on the UNet; the text encoders stay as they are."""

    def __init__(self, config: Config, denoiser: Denoiser) -> None:
        self.config, self.denoiser = config, denoiser
        self.hypernetwork = _first_hypernetwork(config, denoiser).to(denoiser.device)
        self.hypernetwork.requires_grad_(True)
        self.hypernetwork.eval()
        self.parameters = list(self.hypernetwork.parameters())
        self.before = _steps(self.hypernetwork.metadata.get("step")) if config.start_from else 0
        self._attachment: Any = None

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """See `Adapter`."""
        if self._attachment is not None:
            yield
            return
        try:
            with attach(self.denoiser.unet, self.hypernetwork, 1.0) as self._attachment:
                yield
        finally:
            self._attachment = None

    @contextlib.contextmanager
    def acting(self, *, training: bool) -> Iterator[None]:
        """See `Adapter`."""
        before = self.hypernetwork.training
        self.hypernetwork.train(training)
        try:
            with self.ready():
                yield
        finally:
            self.hypernetwork.train(before)

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """See `Adapter`."""
        assert self._attachment is not None
        self._attachment.set_strength(0.0)
        try:
            yield
        finally:
            self._attachment.set_strength(1.0)

    def texts(self, captions: Sequence[str], cache: Cache) -> list[Text]:
        """See `Adapter`."""
        return [cache.text(caption) for caption in captions]

    def save(self, path: Path, step: int, checkpoint: Checkpoint) -> None:
        """See `Adapter`."""
        written = copy.deepcopy(self.hypernetwork).cpu().requires_grad_(False)
        written.metadata |= {
            "step": step,
            "name": self.config.name,
            "sd_checkpoint": checkpoint.hash,
            "sd_checkpoint_name": checkpoint.name,
            "training_config": _config_text(self.config),
        }
        save(written, path)


def _first_hypernetwork(config: Config, denoiser: Denoiser) -> Hypernetwork:
    """A new one, or the one to start from."""
    widths = denoiser.widths
    if config.start_from:
        found = load(config.start_from)
        if found.architecture is None:
            raise ConfigError(f"start_from: {config.start_from} is a composition; name one of its members")
        missing = [width for width in found.widths if width not in widths]
        if missing:
            raise ConfigError(
                f"start_from: {config.start_from} holds the width {missing[0]}, which the model does not have "
                f"({', '.join(map(str, widths))}); it was trained for a model of another family"
            )
        return found.float()
    chosen = config.hypernetwork.widths or widths
    missing = [width for width in chosen if width not in widths]
    if missing:
        raise ConfigError(
            f"hypernetwork.widths has {missing[0]}, which the model does not have: {', '.join(map(str, widths))}"
        )
    kind = config.hypernetwork.initialization
    made = Hypernetwork.new(
        chosen,
        config.hypernetwork.architecture(),
        name=config.name,
        metadata={"weight_initialization": kind},
    )
    initialize(made, kind, config.seed)
    return made


# -- embeddings


class EmbeddingAdapter:
    """Vectors in the place of a word; the UNet and the text encoders stay as they are."""

    def __init__(self, config: Config, denoiser: Denoiser) -> None:
        self.config, self.denoiser = config, denoiser
        pipeline = denoiser.pipeline
        names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
        pairs = [pair for pair in names if getattr(pipeline, pair[1], None) is not None]
        vectors, self.before = _first_vectors(config, pipeline, pairs)
        _, room = token_counter(pipeline.tokenizer)
        if len(vectors[0]) > room:
            raise ConfigError(
                f"embedding.vectors: the embedding has {len(vectors[0])} vectors, and the model's text encoder reads "
                f"{room} tokens of a caption. Take fewer vectors"
            )
        self.parameters = [nn.Parameter(given.float().to(denoiser.device)) for given in vectors]
        self._words = [
            Word(pipeline, *pair, config.token, vectors) for pair, vectors in zip(pairs, self.parameters, strict=True)
        ]

    def ready(self) -> contextlib.AbstractContextManager[object]:
        """See `Adapter`; there is nothing that takes long."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def acting(self, *, training: bool) -> Iterator[None]:
        """See `Adapter`."""
        with contextlib.ExitStack() as stack:
            for word in self._words:
                stack.enter_context(word.known())
            yield

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """See `Adapter`: captions without the word are not changed by it."""
        yield

    def texts(self, captions: Sequence[str], cache: Cache) -> list[Text]:
        """See `Adapter`; captions with the word are encoded anew, with gradients."""
        return [
            self.denoiser.encode_text(caption, trained=True) if self.config.token in caption else cache.text(caption)
            for caption in captions
        ]

    def save(self, path: Path, step: int, checkpoint: Checkpoint) -> None:
        """See `Adapter`."""
        vectors = [parameter.detach().cpu().clone() for parameter in self.parameters]
        embedding = Embedding(
            vectors[0],
            vectors[1] if len(vectors) > 1 else None,
            name=self.config.name,
            step=step,
            sd_checkpoint=checkpoint.hash,
            sd_checkpoint_name=checkpoint.name,
            metadata={"training_config": _config_text(self.config)},
        )
        save_embedding(embedding, path)


class Word:
    """A word that one text encoder knows while `known` holds.

    The tokenizer is exchanged for a copy that has the word; in the encoder's input its tokens get the vectors,
    without any of the encoder's own weights being touched.
    """

    def __init__(self, pipeline: Any, tokenizer: str, encoder: str, token: str, vectors: nn.Parameter) -> None:
        self._pipeline, self._tokenizer, self._vectors = pipeline, tokenizer, vectors
        self._embedding: nn.Module = getattr(pipeline, encoder).get_input_embeddings()
        self._extended = copy.deepcopy(getattr(pipeline, tokenizer))
        # The names that diffusers gives to the tokens of a word with several vectors: w, w_1, w_2, ...
        tokens = [token, *(f"{token}_{index}" for index in range(1, len(vectors)))]
        vocabulary = self._extended.get_vocab()
        # CLIP's words end in </w>; some releases of transformers add a token that is there once more.
        known = [each for each in tokens if each in vocabulary or f"{each.lower()}</w>" in vocabulary]
        if known or self._extended.add_tokens(tokens) != len(tokens):
            raise ConfigError(f"embedding.token: the model's tokenizer knows {token!r} already; choose another word")
        self._ids: list[int] = self._extended.convert_tokens_to_ids(tokens)
        self._places: list[tuple[Tensor, int]] = []

    @contextlib.contextmanager
    def known(self) -> Iterator[None]:
        """See the class."""
        before = getattr(self._pipeline, self._tokenizer)
        hooks = [
            self._embedding.register_forward_pre_hook(self._take_out),
            self._embedding.register_forward_hook(self._put_in),
        ]
        setattr(self._pipeline, self._tokenizer, self._extended)
        try:
            yield
        finally:
            setattr(self._pipeline, self._tokenizer, before)
            for hook in hooks:
                hook.remove()

    def _take_out(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The tokens of the word lie behind the encoder's table: they are looked up as token 0 instead."""
        ids = given[0]
        self._places = [(ids == id_, index) for index, id_ in enumerate(self._ids)]
        for place, _ in self._places:
            ids = ids.masked_fill(place, 0)
        return (ids, *given[1:])

    def _put_in(self, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        for place, index in self._places:
            output = torch.where(place.unsqueeze(-1), self._vectors[index].to(output.dtype), output)
        return output


def _steps(value: object) -> int:
    """Return the steps that a file states, 0 where it states none."""
    return value if type(value) is int and value >= 0 else 0


def _first_vectors(config: Config, pipeline: Any, pairs: list[tuple[str, str]]) -> tuple[list[Tensor], int]:
    """Return a tensor [vectors, width] per text encoder, and the steps that were done for them.

    They are those of the file to start from, or of the initial words.
    """
    tables = [getattr(pipeline, encoder).get_input_embeddings().weight.detach() for _, encoder in pairs]
    if config.start_from:
        found = load_embedding(config.start_from)
        given = [found.vectors] if found.vectors_g is None else [found.vectors, found.vectors_g]
        if [each.shape[1] for each in given] != [table.shape[1] for table in tables]:
            wanted = " and ".join(str(table.shape[1]) for table in tables)
            raise ConfigError(
                f"start_from: {config.start_from} has vectors of {' and '.join(str(each.shape[1]) for each in given)} "
                f"values; this model's text encoders take {wanted}"
            )
        return given, _steps(found.step)
    chosen: list[Tensor] = []
    for (tokenizer, _), table in zip(pairs, tables, strict=True):
        ids = getattr(pipeline, tokenizer)(config.embedding.initial_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError("embedding.initial_text is empty; a word such as 'drawing' was expected")
        chosen.append(table[[ids[index % len(ids)] for index in range(config.embedding.vectors)]].clone().cpu())
    return chosen, 0


def load_companion(path: Path, optimizer: torch.optim.Optimizer, name: str) -> str | None:
    """Set the optimizer from the webui's `.pt.optim` beside the hypernetwork at `path`.

    The state is used only if it belongs to this very file (the hash in it) and to an optimizer of this name.

    Returns:
        Why it was not used; None when it was.

    Raises:
        HypernetworkError: it is there but unsafe or damaged.
    """
    from hnloader.training.companion import read_companion

    beside = path.with_name(path.name + ".optim")
    if not beside.is_file():
        return f"there is no {beside.name}"
    companion = read_companion(beside)
    if companion.optimizer.lower() != name:
        return f"{beside.name} is of {companion.optimizer}, not of {name}"
    if not companion.belongs_to(path):
        return f"{beside.name} belongs to another file"
    state = optimizer.state_dict()
    state["state"] = companion.state
    try:
        check_state(optimizer, [value for group in optimizer.param_groups for value in group["params"]], state)
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise HypernetworkError(
            f"{beside} does not fit its hypernetwork ({error}). Remove it to begin with a new optimizer"
        ) from error
    return None
