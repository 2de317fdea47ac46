"""Load the model that generates images: a diffusers folder, a name on the Hugging Face Hub, or a checkpoint file.

diffusers is imported when a model is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hnloader.errors import HypernetworkError, MissingExtraError, ModelError, install_advice
from hnloader.families import Family, all_families, family_list
from hnloader.files import expanded, open_regular, read_regular, sha256_of
from hnloader.texts import shown

__all__ = ["Model", "load_model"]

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Model:
    """A loaded diffusers pipeline (text to image), and how the metadata of images name it.

    Args:
        pipeline: The pipeline.
        name: Name of the folder, of the file without its suffix, or of the model on the Hub.
        hash: First 10 hex digits of a checkpoint's sha256, as the webuis show it. None for folders and Hub names.

    Example:
        >>> from hnloader.demo import pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> load_model(pipeline_folder(), device="cpu").name
        'pipeline'
    """

    pipeline: Any
    name: str
    hash: str | None = None


@dataclass(frozen=True)
class Sampler:
    """A scheduler of diffusers under its name in the webuis."""

    label: str
    scheduler: str
    options: tuple[tuple[str, object], ...] = ()


SAMPLERS = {
    "euler": Sampler("Euler", "EulerDiscreteScheduler"),
    "euler_a": Sampler("Euler a", "EulerAncestralDiscreteScheduler"),
    "heun": Sampler("Heun", "HeunDiscreteScheduler"),
    "ddim": Sampler("DDIM", "DDIMScheduler"),
    "ddpm": Sampler("DDPM", "DDPMScheduler"),
    "plms": Sampler("PLMS", "PNDMScheduler", (("skip_prk_steps", True),)),
    "dpm2": Sampler("DPM2", "KDPM2DiscreteScheduler"),
    "dpm2_a": Sampler("DPM2 a", "KDPM2AncestralDiscreteScheduler"),
    "dpm++2m": Sampler("DPM++ 2M", "DPMSolverMultistepScheduler", (("algorithm_type", "dpmsolver++"),)),
    "dpm++2m_karras": Sampler(
        "DPM++ 2M Karras",
        "DPMSolverMultistepScheduler",
        (("algorithm_type", "dpmsolver++"), ("use_karras_sigmas", True)),
    ),
    "unipc": Sampler("UniPC", "UniPCMultistepScheduler"),
    "lcm": Sampler("LCM", "LCMScheduler"),
}


def find_sampler(name: str) -> Sampler:
    """Return the sampler with a name such as `dpm++2m_karras`, `DPM++ 2M Karras` or `euler a`, or raise ModelError."""
    for key, sampler in SAMPLERS.items():
        if _letters(key) == _letters(name):
            return sampler
    raise ModelError(f"Sampler {name!r} is unknown. Use one of: {', '.join(SAMPLERS)}.")


def make_scheduler(sampler: Sampler, config: Any) -> Any:
    """Return the diffusers scheduler of a sampler, with the noise schedule of a pipeline's `scheduler.config`."""
    return getattr(_diffusers(), sampler.scheduler).from_config(config, **dict(sampler.options))


def sampler_label(scheduler: Any) -> str:
    """Return the webuis' name of a diffusers scheduler, or its class without 'Scheduler'."""
    kind, config = type(scheduler).__name__, scheduler.config
    fitting = [
        sampler
        for sampler in SAMPLERS.values()
        if sampler.scheduler == kind and all(config.get(key) == value for key, value in sampler.options)
    ]
    most_exact = max(fitting, key=lambda sampler: len(sampler.options), default=None)
    return most_exact.label if most_exact else kind.removesuffix("Scheduler")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name, or raise ModelError; `auto` prefers NVIDIA or AMD, then Apple, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"Device {name!r} failed: {_first_line(error)}. Choose another device.") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name, or raise ModelError; `auto` is float16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise ModelError(f"Dtype {name!r} is unknown. Use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def load_model(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    config: str | os.PathLike[str] | None = None,
) -> Model:
    """Load a model for `hnloader.generation`.

    Args:
        source: A folder saved by diffusers; a `.safetensors` or `.ckpt` checkpoint of SD 1, SD 2 or SDXL; or a name
            on the Hugging Face Hub (`owner/model`), which diffusers downloads once.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. Default: `auto`, a GPU if one works.
        dtype: `auto`, `float16`, `bfloat16`, `float32`. Default: `auto`, float16 on a GPU and float32 on the CPU.
        config: Diffusers folder of a model of the same kind, for a checkpoint without network access. Default:
            diffusers downloads the configuration and the tokenizer (a few MB) once.

    Returns:
        The model on its device.

    Raises:
        ModelError: The source is missing, damaged, or another kind of model; or the device or dtype is unknown.
        MissingExtraError: diffusers or transformers is not installed.

    Example:
        >>> from hnloader.demo import pipeline_folder
        >>> from hnloader.pipelines import load_model
        >>> model = load_model(pipeline_folder(), device="cpu", dtype="float32")
        >>> type(model.pipeline).__name__
        'StableDiffusionPipeline'
    """
    target = choose_device(device)
    precision = choose_dtype(dtype, target)
    path = expanded(source)
    diffusers = _diffusers()
    if path.is_file():
        pipeline = _from_file(diffusers, path, precision, config)
        model = Model(pipeline, path.stem, sha256_of(path)[:10])
    elif path.is_dir():
        pipeline = _from_folder(diffusers, path, precision)
        model = Model(pipeline, path.resolve().name)
    else:
        pipeline = _from_hub(diffusers, str(source), precision)
        model = Model(pipeline, str(source).rpartition("/")[2])
    _check_kind(pipeline, source)
    pipeline.set_progress_bar_config(disable=True)
    return Model(pipeline.to(target), model.name, model.hash)


def check_source(source: str | os.PathLike[str]) -> None:
    """Raise ModelError for a path that does not exist and cannot be a name on the Hub; load nothing."""
    name = os.fspath(source)
    if expanded(name).exists():
        return
    if not _HUB_NAME.fullmatch(name) or name.lower().endswith(CHECKPOINT_SUFFIXES) or name.startswith("."):
        raise ModelError(
            f"{name}: found no such folder or file. Give a diffusers folder, a .safetensors or .ckpt checkpoint, or a "
            "name on the Hugging Face Hub (owner/model)."
        )


def _from_folder(diffusers: Any, path: Path, dtype: torch.dtype) -> Any:
    if not (path / "model_index.json").is_file():
        files = [name for suffix in CHECKPOINT_SUFFIXES for name in sorted(path.glob(f"*{suffix}"))]
        hint = f"Give the file {files[0].name} in it" if files else "Give a folder saved by diffusers"
        raise ModelError(f"{path}: the folder has no model_index.json. {hint}.")
    with model_errors(path), quiet():
        return diffusers.DiffusionPipeline.from_pretrained(path, **_dtype(diffusers, dtype), local_files_only=True)


def _from_hub(diffusers: Any, name: str, dtype: torch.dtype) -> Any:
    check_source(name)
    with model_errors(f"{name} (on the Hugging Face Hub, because the folder does not exist)"), quiet():
        return diffusers.DiffusionPipeline.from_pretrained(name, **_dtype(diffusers, dtype))


def _from_file(diffusers: Any, path: Path, dtype: torch.dtype, config: str | os.PathLike[str] | None) -> Any:
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise ModelError(
            f"{path}: found the suffix {shown(path.suffix)}. Give a {' or '.join(CHECKPOINT_SUFFIXES)} file."
        )
    kind = getattr(diffusers, _family_of_file(path, config).pipeline)
    options = {} if config is None else {"config": os.fspath(config), "local_files_only": True}
    try:
        with model_errors(path), quiet():
            return kind.from_single_file(os.fspath(path), **_dtype(diffusers, dtype), **options)
    except ModelError as error:
        if config is None and _is_connection_error(error.__cause__):
            raise ModelError(
                f"{path}: the checkpoint has no configuration and tokenizer, and the Hugging Face Hub, which has them, "
                "cannot be reached. Give a diffusers folder of the same kind of model as config."
            ) from error.__cause__
        raise


def _dtype(diffusers: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype as an argument: `torch_dtype` in diffusers 0.x (later ones warn), `dtype` in 1.0."""
    return {"torch_dtype" if diffusers.__version__.startswith("0.") else "dtype": dtype}


def _family_of_file(path: Path, config: str | os.PathLike[str] | None) -> Family:
    """Return the family of a checkpoint, by the given configuration or by the file's tensor names."""
    first, *others = all_families()
    if config is not None:
        index = Path(config) / "model_index.json"
        if not index.is_file():
            raise ModelError(f"{config}: the folder has no model_index.json. Give a folder saved by diffusers.")
        name = str(json.loads(read_regular(index)).get("_class_name"))
        fitting = [family for family in all_families() if name.startswith(family.pipeline.removesuffix("Pipeline"))]
        return max(fitting, key=lambda family: len(family.pipeline), default=first)
    with open_regular(path) as file:
        head = file.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        # A .ckpt has no header, and such families were never published as one.
        header = file.read(min(size, 64 * 2**20)) if path.suffix.lower() == ".safetensors" else b""
    prefixed = (family for family in others if family.checkpoint_prefix)
    return next((family for family in prefixed if family.checkpoint_prefix.encode() in header), first)


def _check_kind(pipeline: Any, source: object) -> None:
    unet, vae = getattr(pipeline, "unet", None), getattr(pipeline, "vae", None)
    if unet is None or vae is None:
        raise ModelError(f"{source}: a {type(pipeline).__name__} has no UNet. Use a model of {family_list()}.")
    if unet.config.in_channels != vae.config.latent_channels:
        raise ModelError(
            f"{source}: its UNet takes {unet.config.in_channels} channels, as models for inpainting and editing do. "
            "Use a model that makes images from text."
        )


@contextlib.contextmanager
def model_errors(source: object) -> Iterator[None]:
    """Turn any error of diffusers or transformers about a model into a ModelError."""
    try:
        yield
    except (HypernetworkError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except ImportError as error:
        raise MissingExtraError(f"{source}: a package is missing: {_first_line(error)}. Install it.") from error
    except Exception as error:  # safetensors, pickle, json, the Hub and diffusers each raise their own
        raise ModelError(
            f"{source}: the model cannot be loaded ({_first_line(error)}). Check or replace it."
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of diffusers and transformers, whichever are imported."""
    packages = [name for name in ("diffusers", "transformers") if name in sys.modules]
    loggers: list[Any] = [importlib.import_module(f"{name}.utils.logging") for name in packages]
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
            logger.enable_progress_bar()


def _diffusers() -> Any:
    """Return the diffusers package, or raise MissingExtraError."""
    try:
        import diffusers
        import transformers  # noqa: F401  (diffusers imports without it, but its pipelines then fail)
    except ImportError as error:
        raise MissingExtraError(
            f"Generating images requires {error.name or 'diffusers'}. {install_advice('diffusers')}."
        ) from error
    return diffusers


def _is_connection_error(error: BaseException | None) -> bool:
    """Return True if an error in the chain of causes comes from the network or the Hub."""
    while error is not None:
        module = type(error).__module__.partition(".")[0]
        if module in ("huggingface_hub", "requests", "httpx", "httpcore", "urllib3") or isinstance(
            error, ConnectionError
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0].strip().rstrip(".")
    return text or type(error).__name__


def _letters(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()
