"""Prepare a training run: check the settings, read the data and load the model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hnloader.attention import find_sites
from hnloader.demo import predictor_path
from hnloader.errors import ConfigError, HypernetworkError
from hnloader.files import expanded, make_folder
from hnloader.language_models import LanguageModel, is_language_model, load_language_model
from hnloader.loading import save
from hnloader.pipelines import Model, choose_device, load_model
from hnloader.prediction.image_styles import ImageStyles
from hnloader.prediction.model_side import MOST_EXAMPLES, kind_of
from hnloader.prediction.predicting import StylePredictor
from hnloader.prediction.predictor_file import load_predictor
from hnloader.prediction.predictor_task import PredictorTask
from hnloader.prediction.text_styles import TextStyles
from hnloader.training.config import PREDICT, Config
from hnloader.training.dataset import Dataset, read_folder
from hnloader.training.denoiser import Denoiser
from hnloader.training.deterministic import configure_cublas
from hnloader.training.image_task import ImageTask
from hnloader.training.optimizers import OPTIMIZERS
from hnloader.training.run_folder import locked, run_folder
from hnloader.training.sampler import split
from hnloader.training.state import states
from hnloader.training.task import Task, resolved
from hnloader.training.text_dataset import read_texts
from hnloader.training.text_task import TextTask
from hnloader.training.trackers import check_trackers
from hnloader.training.trainer import Trainer
from hnloader.training.widening import widened


def prepare(
    config: Config, *, resume: bool = False, restart: bool = False, dry_run: bool = False, device: str = "auto"
) -> Trainer:
    """See `hnloader.training.prepare`."""
    config.check()
    OPTIMIZERS[config.optimizer_name].load()
    check_trackers(config.trackers)
    output = Path(config.output)
    saved = states(run_folder(output))
    if not dry_run:
        _check_output(output, saved, resume=resume, restart=restart)
    _check_kind(config)
    accelerator = _accelerator()
    place = device if accelerator is None else str(accelerator.device)
    check_precision(config.precision, place)
    if config.deterministic:
        configure_cublas()
    if config.texts:
        task: Task = _text_task(config, place)
    elif config.method == "predictor":
        task = _predictor_task(config, place)
    else:
        task = image_task(config, place, keep=resume and not restart)
    trainer = Trainer(task, accelerator)
    if restart and (accelerator is None or accelerator.is_main_process):
        with locked(output):
            _remove(saved)
    elif resume and not restart:
        trainer.resume()
    return trainer


def image_task(config: Config, device: str, *, keep: bool) -> ImageTask:
    """Read the images, load the model and make the adapter; `keep` keeps a predicted start."""
    dataset = read_folder(expanded(config.images), config.data)
    model = _model(config, device)
    if config.start_from == PREDICT:
        config = replace(config, start_from=str(_predicted(config, dataset, model, keep=keep)))
    return ImageTask(config, _denoiser(config, model), dataset, model)


def _predictor_task(config: Config, device: str) -> PredictorTask:
    folder = expanded(config.styles)
    if kind_of(folder) == "text":
        return PredictorTask(TextStyles(config, _language_model(config, device), folder))
    model = _model(config, device)
    return PredictorTask(ImageStyles(config, _denoiser(config, model), folder, model))


def _model(config: Config, device: str) -> Model:
    return load_model(
        config.model,
        device=device,
        dtype=config.precision,
        config=Path(config.model_config) if config.model_config else None,
    )


def _denoiser(config: Config, model: Model) -> Denoiser:
    unet = model.pipeline.unet
    denoiser = Denoiser(model.pipeline, _offloaded_parts(config, unet.device.type))
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        _train_checkpointed(unet)
    return denoiser


def _text_task(config: Config, device: str) -> TextTask:
    dataset = read_texts(expanded(config.texts), config.text)
    return TextTask(config, _language_model(config, device), dataset)


def _language_model(config: Config, device: str) -> LanguageModel:
    language = load_language_model(config.model, device=device, dtype=config.precision)
    if config.gradient_checkpointing:
        model = language.model
        # The second name is that of older transformers.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        with contextlib.suppress(AttributeError):  # then the embeddings record no gradients
            model.disable_input_require_grads()
        _train_checkpointed(model)
    return language


def _check_kind(config: Config) -> None:
    """Raise ConfigError for texts with a model of images, or images with a language model."""
    given = expanded(config.model)
    if config.styles:
        _check_styles_kind(config, given)
    if config.images and is_language_model(given):
        raise ConfigError(
            f"Setting 'images': {config.model} is a language model. Set texts in place of images, or use a model that "
            "generates images."
        )
    if config.texts and (given / "model_index.json").is_file():
        raise ConfigError(
            f"Setting 'texts': {config.model} generates images. Set images in place of texts, or use a language model."
        )


def _check_styles_kind(config: Config, model: Path) -> None:
    kind = kind_of(config.styles)
    if kind == "image" and is_language_model(model):
        raise ConfigError(
            f"Setting 'styles': found images, and {config.model} is a language model. Use texts, or a model that "
            "generates images."
        )
    if kind == "text" and (model / "model_index.json").is_file():
        raise ConfigError(
            f"Setting 'styles': found texts, and {config.model} generates images. Use images, or a language model."
        )


def _predicted(config: Config, dataset: Dataset, model: Model, *, keep: bool) -> Path:
    """Write a hypernetwork that is predicted from the training images, as wide as a new one; return its path.

    Args:
        config: The settings.
        dataset: The images; those for validation are left out.
        model: The model.
        keep: Use the file of an earlier run if it exists.
    """
    path = run_folder(Path(config.output)) / "predicted.safetensors"
    if not (keep and path.is_file()):
        stored = load_predictor(config.start_predictor or predictor_path())
        training, _ = split(len(dataset.images), config.data.validation_split, config.seed)
        files = [dataset.images[index].path for index in training][:MOST_EXAMPLES]
        make_folder(path.parent)
        predicted = StylePredictor(stored, model).predict(files, name=config.name).hypernetwork
        structure = resolved(config, find_sites(model.pipeline.unet)).hypernetwork.layer_structure
        save(widened(predicted, structure, config.seed), path)
    return path


def _check_output(output: Path, saved: list[Path], *, resume: bool, restart: bool) -> None:
    """Raise an error if the output would replace other work, or cannot be written after the last step."""
    if saved and not (resume or restart):
        raise ConfigError(f"{output}: found the saved state {saved[-1]} of an earlier run. Use --resume or --restart.")
    if not (saved or restart) and os.path.lexists(output):
        raise ConfigError(
            f"{output} exists, without a saved state of its training. Choose another output, or replace it with "
            "--restart."
        )
    folder = output.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HypernetworkError(f"{output} cannot be written: {folder}: {error.strerror or error}.") from error


def check_precision(precision: str, device: str) -> None:
    """Raise ConfigError if the device does not support the precision."""
    kind = choose_device(device).type
    if precision == "float16" and kind not in ("cuda", "xpu"):
        raise ConfigError(
            f"Setting 'precision': 'float16' requires a GPU, and the device is {kind}. Use bfloat16, which "
            "needs as little memory, or float32."
        )


def _remove(saved: list[Path]) -> None:
    for path in saved:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise HypernetworkError(f"{path} cannot be removed: {error.strerror or error}. Remove it.") from error


def _offloaded_parts(config: Config, device: str) -> tuple[str, ...]:
    """Return the parts to offload from a GPU; an embedding is trained through the encoders."""
    if device not in ("cuda", "xpu"):
        return ()
    return ("vae",) if config.method == "embedding" else ("vae", "text_encoder", "text_encoder_2")


def _train_checkpointed(model: Any) -> None:
    """Put the modules that recompute activations into training mode, in which alone they do so.

    Their children, above all dropout, stay in evaluation mode.
    """
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            if isinstance(vars(module).get("dropout"), float):  # OPT's layers apply it themselves
                module.dropout = 0.0


def _accelerator() -> Any:
    """Return the accelerator of a training run in several processes (`accelerate launch`, `torchrun`), else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    # Without `cpu`, processes on a machine without a GPU would each train alone.
    return Accelerator(cpu=choose_device("auto").type == "cpu")
