"""Training hypernetworks and textual-inversion embeddings on one's own images.

    result = hnloader.train("config.yaml")
    result = hnloader.train({"model": "sd15/", "images": "images/", "output": "style.pt"})

docs/training.md is the guide; `hnloader train --init` writes a commented configuration.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import ConfigError, HypernetworkError
from hnloader.files import expanded
from hnloader.training.config import Config, read_config

if TYPE_CHECKING:
    from hnloader.training.loop import Event, Result, Training

__all__ = ["Config", "ConfigError", "prepare", "read_config", "train"]


def train(
    config: Config | str | os.PathLike[str] | Mapping[str, Any],
    *,
    resume: bool = False,
    restart: bool = False,
    device: str = "auto",
    report: Callable[[Event], None] | None = None,
) -> Result:
    """Train a hypernetwork or an embedding on a folder of images, to the end, and write the file `output`.

    It needs the extra `train`: `pip install 'hnloader[train]'`.

    Args:
        config: what to train, on what and how: the path of a YAML file as `hnloader train --init` writes it, a
            mapping of settings (keys may be dotted: `{"data.flip": False}`), or a `hnloader.training.Config`. Settings
            that are not given have the defaults of the preset `style`.
        resume: go on from the newest saved state beside the output.
        restart: begin from the start although the output or saved states exist: they are replaced.
        device: `auto`, `cpu`, `cuda`, ...
        report: called with a `hnloader.training.loop.Event` after each step: step, loss, held-out loss, ...

    Returns:
        The file, how many steps were done, why it ended, the lowest held-out loss with its file, and the history of
        the measurements.

    Raises:
        ConfigError: a setting is missing or impossible, or the output or saved states exist and neither `resume` nor
            `restart` says what to do.
        DatasetError, ModelError: the images or the model cannot be used.
        DivergedError: the loss became NaN or infinite; the saved states stand.
        HypernetworkError: the output cannot be written, another training of it is running, a saved state cannot be
            resumed from, or no gradient arrives at what is trained.
        MissingExtraError: a package of the extra `train`, or one that the settings ask for, is not installed.
    """
    return prepare(_settings(config), resume=resume, restart=restart, device=device).run(report)


def _settings(given: Config | str | os.PathLike[str] | Mapping[str, Any]) -> Config:
    if isinstance(given, Config):
        return given
    if isinstance(given, Mapping):
        return read_config(None, dict(given))
    return read_config(Path(given))


def prepare(
    config: Config, *, resume: bool = False, restart: bool = False, judged: bool = False, device: str = "auto"
) -> Training:
    """Everything before the first step; see `train` for the rest.

    With `judged` it is not to be run but only to be looked at: saved states are neither read nor removed.
    """
    from hnloader.errors import MissingExtraError
    from hnloader.pipelines import load_model

    try:
        from hnloader.training.dataset import read_folder
        from hnloader.training.denoiser import Denoiser
        from hnloader.training.loop import Training, alone, folder_of
        from hnloader.training.optimizers import KINDS
        from hnloader.training.reproducible import ask_cublas
        from hnloader.training.state import states
        from hnloader.training.trackers import check_trackers
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"Training needs {error.name}: pip install 'hnloader[train]'") from error

    config.check()
    KINDS[config.optimizer].load()
    check_trackers(config.trackers)
    found = states(folder_of(Path(config.output)))
    if found and not (resume or restart or judged):
        raise ConfigError(
            f"{found[-1]} is a saved state of an earlier training of {config.output}: go on from it with --resume, "
            "or begin anew with --restart"
        )
    if not judged:
        if not (found or restart) and os.path.lexists(config.output):
            raise ConfigError(
                f"{config.output} exists, and no saved state of its training is beside it. Choose another output, or "
                "replace it with --restart."
            )
        _check_writable(Path(config.output))
    dataset = read_folder(expanded(config.images), config.data)
    processes = _processes()
    place = device if processes is None else str(processes.device)
    check_precision(config, place)
    if config.reproducible:
        ask_cublas()
    model = load_model(
        config.model,
        device=place,
        dtype=config.precision,
        config=Path(config.model_config) if config.model_config else None,
    )
    denoiser = Denoiser(model.pipeline, _aside(config, model.pipeline.unet.device.type))
    if config.checkpointing:
        _checkpoint(model.pipeline.unet)
    training = Training(config, denoiser, dataset, model, processes)
    if restart and (processes is None or processes.is_main_process):
        with alone(Path(config.output)):
            _remove(found)
    elif resume and not restart:
        training.resume()
    return training


def _remove(saved: list[Path]) -> None:
    """Remove saved states. Raises HypernetworkError where one cannot be."""
    for path in saved:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise HypernetworkError(
                f"{path} cannot be removed: {error.strerror or error}. Remove it yourself"
            ) from error


def _check_writable(output: Path) -> None:
    """Raise HypernetworkError where the output could not be written: now, and not after the last step."""
    folder = output.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HypernetworkError(f"cannot write {output}: {folder}: {error.strerror or error}") from error


def check_precision(config: Config, device: str) -> None:
    """Raise ConfigError where the device does not compute in the precision that is asked for."""
    from hnloader.pipelines import choose_device

    kind = choose_device(device).type
    if config.precision == "float16" and kind not in ("cuda", "xpu"):
        raise ConfigError(
            f"precision is 'float16', and the training would run on {kind}: float16 needs a graphics card. Take "
            "bfloat16, which needs as little memory, or float32"
        )


def _aside(config: Config, kind: str) -> tuple[str, ...]:
    """The parts that need not be on a graphics card all the time; an embedding is trained through the encoders."""
    if kind not in ("cuda", "xpu"):
        return ()
    return ("vae",) if config.method == "embedding" else ("vae", "text_encoder", "text_encoder_2")


def _checkpoint(unet: Any) -> None:
    """Have the UNet keep less for the gradients and compute it again."""
    unet.enable_gradient_checkpointing()
    # Before 0.33, diffusers does so only in modules that are being trained. Their own flag says so; what lies in
    # them, dropout above all, stays as it is.
    for module in unet.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def _processes() -> Any:
    """The accelerator of a training started by `accelerate launch` on several devices, else None."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator()
