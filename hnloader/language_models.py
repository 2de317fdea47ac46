"""Load language models: a folder saved by transformers, a GGUF file, or a name on the Hugging Face Hub.

transformers is imported when a model is loaded.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hnloader.attention.decoders import why_no_decoder
from hnloader.attention.layout import find_sites, is_decoder
from hnloader.errors import MissingExtraError, ModelError, install_advice
from hnloader.files import expanded, read_regular
from hnloader.pipelines import choose_device, choose_dtype, model_errors, quiet

__all__ = ["LanguageModel", "is_language_model", "load_language_model"]

GGUF_SUFFIX = ".gguf"
# The names of the setting with the most tokens, by family.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True)
class LanguageModel:
    """A loaded language model with its tokenizer.

    Args:
        model: The model of transformers, a decoder with a head.
        tokenizer: Its tokenizer.
        name: Name of the folder, of the file without its suffix, or of the model on the Hub.
        hash: None; checkpoints of image models have a hash.
    """

    model: Any
    tokenizer: Any
    name: str
    hash: str | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    def positions(self) -> int | None:
        """The most tokens that the model reads; None if its settings have no limit."""
        config = self.model.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        found = (getattr(config, name, None) for name in _POSITIONS)
        return next((int(value) for value in found if isinstance(value, int) and value > 0), None)


def is_language_model(source: str | os.PathLike[str]) -> bool:
    """Return True for a folder of a transformers model or a GGUF file; False for anything else and for Hub names."""
    path = expanded(source)
    if path.is_file():
        return path.suffix.lower() == GGUF_SUFFIX
    try:
        config: object = json.loads(read_regular(path / "config.json"))
    except (OSError, ValueError, RecursionError):
        return False
    # diffusers writes its class into the config of a UNet, and a model_index.json into a pipeline's folder.
    return isinstance(config, dict) and "_class_name" not in config and not (path / "model_index.json").exists()


def load_language_model(source: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Load a language model with its tokenizer.

    Args:
        source: A folder saved by transformers, a `.gguf` file, or a name on the Hugging Face Hub (`owner/model`), which
            transformers downloads once.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. Default: `auto`, a GPU if one works.
        dtype: `auto`, `float16`, `bfloat16`, `float32`. Default: `auto`, float16 on a GPU and float32 on the CPU.

    Returns:
        The model on its device, in evaluation mode.

    Raises:
        ModelError: The source is missing, damaged, or another kind of model; or it has no tokenizer.
        MissingExtraError: transformers is not installed, or gguf for a `.gguf` file.
    """
    target = choose_device(device)
    precision = choose_dtype(dtype, target)
    transformers = _transformers()
    path = expanded(source)
    name, place, options = _place(path, str(source))
    # A progress bar of GGUF files has no switch.
    hidden = contextlib.redirect_stderr(io.StringIO()) if "gguf_file" in options else contextlib.nullcontext()
    with model_errors(source), quiet(), hidden:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        except Exception as error:  # each tokenizer fails in its own way
            raise ModelError(
                f"{source}: the tokenizer is missing or cannot be loaded ({' '.join(str(error).split())[:200]}). "
                "Save it there with tokenizer.save_pretrained."
            ) from error
        key = "dtype" if _newer(transformers.__version__, (4, 56)) else "torch_dtype"
        model = transformers.AutoModelForCausalLM.from_pretrained(place, **options, **{key: precision})
    if not is_decoder(find_sites(model)):
        found = why_no_decoder(model) or "no attention layers with keys and values"
        raise ModelError(f"{source}: a {type(model).__name__} has {found}. Use another language model.")
    return LanguageModel(model.to(target).eval(), tokenizer, name)


def _place(path: Path, source: str) -> tuple[str, str, dict[str, Any]]:
    """Return the name of a model, and the place and options to load it with."""
    if path.is_file():
        if path.suffix.lower() != GGUF_SUFFIX:
            raise ModelError(
                f"{path}: found the suffix {path.suffix!r}. Give a folder saved by transformers, or a .gguf file."
            )
        try:
            import gguf  # noqa: F401  (transformers reads the file with it)
        except ImportError as error:
            raise MissingExtraError(f"{path}: a GGUF file requires gguf. Run: pip install gguf.") from error
        return path.stem, os.fspath(path.parent), {"gguf_file": path.name, "local_files_only": True}
    if path.is_dir():
        if not is_language_model(path):
            raise ModelError(f"{path}: the folder has no config.json of a language model. Give one of transformers.")
        return path.resolve().name, str(path), {"local_files_only": True}
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(
            f"{source}: found no such folder or file. Give a folder saved by transformers, a .gguf file, or a name on "
            "the Hugging Face Hub (owner/model)."
        )
    return source.rpartition("/")[2], source, {}


def _newer(version: str, least: tuple[int, int]) -> bool:
    major, minor, *_ = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= least


def _transformers() -> Any:
    """Return the transformers package, or raise MissingExtraError."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"Language models require transformers. {install_advice('diffusers')}.") from error
    return transformers
