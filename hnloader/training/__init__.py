"""Training hypernetworks and textual-inversion embeddings on one's own pictures.

    result = train(read_config(Path("config.yaml")))

docs/training.md is the guide; `hnloader train --init` writes a commented configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hnloader.training.config import Config, read_config
from hnloader.training.schema import ConfigError

__all__ = ["Config", "ConfigError", "prepare", "read_config", "train"]


def train(
    config: Config,
    *,
    resume: bool = False,
    restart: bool = False,
    device: str = "auto",
    report: Callable[[Any], None] | None = None,
) -> Any:
    """Train to the end and write `config.output`.

    Args:
        config: what to train, on what and how; see `hnloader.training.config`.
        resume: go on from the newest saved state beside the output.
        restart: begin anew although there are saved states; they are removed.
        device: `auto`, `cpu`, `cuda`, ...
        report: called with an `Event` after each step.

    Returns:
        A `hnloader.training.loop.Result`.

    Raises:
        ConfigError: a setting is missing or impossible, or there are saved states and neither `resume` nor
            `restart` says what to do.
        DatasetError, ModelError: the pictures or the model cannot be used.
        DivergedError: the loss became NaN or infinite; the saved states stand.
        HypernetworkError: the output cannot be written, or another training of it is running.
    """
    return prepare(config, resume=resume, restart=restart, device=device).run(report)


def prepare(
    config: Config, *, resume: bool = False, restart: bool = False, judged: bool = False, device: str = "auto"
) -> Any:
    """Everything before the first step: a `hnloader.training.loop.Training`; see `train` for the rest.

    With `judged` it is not to be run but only to be looked at: saved states are neither read nor removed.
    """
    from hnloader.pipelines import load_model
    from hnloader.training.dataset import read_folder
    from hnloader.training.denoiser import Denoiser
    from hnloader.training.loop import Training, alone, folder_of
    from hnloader.training.state import states

    config.check()
    found = states(folder_of(Path(config.output)))
    if found and not (resume or restart or judged):
        raise ConfigError(
            f"{found[-1]} is a saved state of an earlier training of {config.output}: go on from it with --resume, "
            "or begin anew with --restart"
        )
    dataset = read_folder(Path(config.pictures).expanduser(), config.data)
    processes = _processes()
    place = device if processes is None else str(processes.device)
    model = load_model(config.model, device=place, dtype=config.precision)
    denoiser = Denoiser(model.pipeline)
    if config.checkpointing:
        _checkpoint(model.pipeline.unet)
    training = Training(config, denoiser, dataset, model, processes)
    if restart and (processes is None or processes.is_main_process):
        with alone(Path(config.output)):
            for path in found:
                path.unlink(missing_ok=True)
    elif resume and not restart:
        training.resume()
    return training


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
