"""Train hypernetworks, textual-inversion embeddings and LoRAs on your own images or texts.

It requires the extra `train` (docs/install.md). docs/training.md is the guide.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import MissingExtraError, install_advice
from hnloader.training.config import Config, read_config
from hnloader.training.events import BestWeights, Event, Result

if TYPE_CHECKING:
    from hnloader.training.trainer import Trainer

__all__ = ["BestWeights", "Config", "Event", "Result", "prepare", "read_config", "train"]


def train(
    config: Config | str | os.PathLike[str] | Mapping[str, Any],
    *,
    resume: bool = False,
    restart: bool = False,
    device: str = "auto",
    callback: Callable[[Event], None] | None = None,
) -> Result:
    """Train a hypernetwork, an embedding or a LoRA on a folder of images or texts, and write it to `output`.

    Args:
        config: The path of a YAML file, as `hnloader train --init` prints it; a mapping of settings, whose keys may
            be dotted ({"data.random_flip": False}); or a `Config`. Other settings have their defaults.
        resume: Continue from the newest saved state.
        restart: Replace the output and the saved states of an earlier training run.
        device: "auto", "cpu", "cuda", ... Default: a GPU, if any.
        callback: Called with an `Event` after each step.

    Returns:
        The file, the number of steps, why the training ended, and its losses.

    Raises:
        ConfigError: A setting is missing or wrong, or the output exists and needs `resume` or `restart`.
        DatasetError: The folder has no usable image or text.
        ModelError: The model cannot be loaded.
        DivergedError: The loss became NaN or infinite. The saved states are kept.
        HypernetworkError: The output cannot be written, another training run is writing it, the saved states do not
            fit, or no gradient reaches the weights.
        MissingExtraError: A package is missing.

    Example:
        >>> import tempfile
        >>> import hnloader
        >>> from hnloader.demo import pipeline_folder
        >>> from hnloader.demo.drawing import draw_images
        >>> folder = tempfile.TemporaryDirectory()
        >>> images = draw_images("blueprint", f"{folder.name}/images", count=4)
        >>> result = hnloader.train(
        ...     {
        ...         "model": str(pipeline_folder()),
        ...         "images": str(images),
        ...         "output": f"{folder.name}/blueprint.pt",
        ...         "steps": 2,
        ...         "previews.every_n_steps": 0,
        ...     }
        ... )
        >>> result.step, result.reason, result.output.name
        (2, 'done', 'blueprint.pt')
        >>> hnloader.load(result.output).widths
        (64, 96, 112, 128)
        >>> folder.cleanup()
    """
    if isinstance(config, Mapping):
        config = read_config(None, dict(config))
    elif not isinstance(config, Config):
        config = read_config(Path(config))
    return prepare(config, resume=resume, restart=restart, device=device).run(callback)


def prepare(
    config: Config, *, resume: bool = False, restart: bool = False, dry_run: bool = False, device: str = "auto"
) -> Trainer:
    """Check the settings, read the data and load the model, without a step.

    Args:
        config: The settings.
        resume: Continue from the newest saved state.
        restart: Replace the output and the saved states of an earlier training run.
        dry_run: Only look at the training: neither read nor remove saved states, and accept an existing output.
        device: "auto", "cpu", "cuda", ...

    Returns:
        The trainer. `run` trains, `stop` ends after the current step.

    Raises:
        HypernetworkError: As `train`, except for errors of the steps.

    Example:
        >>> from hnloader.errors import ConfigError
        >>> from hnloader.training import Config, prepare
        >>> try:
        ...     prepare(Config(model="sd15/", images="images/"))
        ... except ConfigError as error:
        ...     print(error)
        Setting 'output' is missing. Name the file to write, such as style.pt.
    """
    try:
        from hnloader.training import preparation
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"Training requires {error.name}. {install_advice('train')}.") from error
    return preparation.prepare(config, resume=resume, restart=restart, dry_run=dry_run, device=device)
