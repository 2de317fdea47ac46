"""Losses and previews to TensorBoard and wandb, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import MissingExtraError
from hnloader.training import schema

if TYPE_CHECKING:
    from PIL.Image import Image

    from hnloader.training.config import Config


def check_trackers(names: Sequence[str]) -> None:
    """Raise MissingExtraError where the package of one of them is not installed."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    here = {str(each.value) for each in get_available_trackers()}
    for name in names:
        if name not in here:
            raise MissingExtraError(f"trackers: {name} is not installed: pip install {name}, or leave it out")


class Trackers:
    """Those that the configuration names, for as long as a training runs.

    What goes wrong in one of them (no network, a full disk) is returned once as a message and stops nothing; nothing
    more is sent then.

    Args:
        config: its `trackers` may be names, or accelerate's own tracker objects.
        folder: TensorBoard's files go to `logs` in it.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._accelerator: Any = None

    def start(self) -> str:
        """Begin; "" or what went wrong."""
        if not self._config.trackers:
            return ""
        from accelerate import Accelerator

        flat = dict(_flat(schema.plain(self._config)))

        def begin() -> None:
            self._accelerator = Accelerator(log_with=list(self._config.trackers), project_dir=str(self._folder))
            self._accelerator.init_trackers("logs", config=flat)

        return self._guarded(begin)

    def log(self, values: Mapping[str, float | None], step: int) -> str:
        """Send figures; those that are None are left out."""
        if self._accelerator is None:
            return ""
        known = {key: value for key, value in values.items() if value is not None}
        return self._guarded(lambda: self._accelerator.log(known, step=step))

    def show(self, images: Sequence[Image], step: int) -> str:
        """Send previews."""
        if self._accelerator is None:
            return ""
        import numpy as np

        arrays = [np.asarray(image.convert("RGB")) for image in images]

        def send() -> None:
            for tracker in self._accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    sent = np.stack(arrays) if form else arrays
                    tracker.log_images({"previews": sent}, step=step, **form)

        return self._guarded(send)

    def end(self) -> None:
        """Finish the run."""
        if self._accelerator is not None:
            self._guarded(self._accelerator.end_training)
            self._accelerator = None

    def _guarded(self, call: Any) -> str:
        try:
            call()
        except Exception as error:  # of packages that we do not know
            self._accelerator = None
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            return (
                f"the trackers ({', '.join(map(str, self._config.trackers))}) stopped: {reason}. The training goes on."
            )
        return ""


def _flat(values: Mapping[str, object], before: str = "") -> list[tuple[str, object]]:
    """Dotted keys with plain values, as accelerate's trackers take them."""
    found: list[tuple[str, object]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{key}.")
        else:
            found.append((before + key, value if isinstance(value, (bool, int, float, str)) else str(value)))
    return found
