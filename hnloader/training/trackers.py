"""Send losses and previews to TensorBoard and wandb, through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import MissingExtraError
from hnloader.training import schema
from hnloader.training.config import Config

if TYPE_CHECKING:
    from PIL.Image import Image


def check_trackers(names: Sequence[str]) -> None:
    """Raise MissingExtraError if the package of a tracker is not installed."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    available = {str(each.value) for each in get_available_trackers()}
    for name in names:
        if name not in available:
            raise MissingExtraError(f"Setting 'trackers': {name} is not installed. Run: pip install {name}.")


class Trackers:
    """The trackers of a training run.

    A failure (no network, a full disk) is returned once as a message. It stops the trackers, but not the training.

    Args:
        config: Its `trackers` may be names, or accelerate's tracker objects.
        folder: TensorBoard's files go to `logs` in it.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._accelerator: Any = None

    def start(self) -> str:
        """Start; return a failure or ""."""
        if not self._config.trackers:
            return ""
        from accelerate import Accelerator

        def begin() -> None:
            self._accelerator = Accelerator(log_with=list(self._config.trackers), project_dir=str(self._folder))
            self._accelerator.init_trackers("logs", config=dict(_flat(schema.plain(self._config))))

        return self._guarded(begin)

    def log(self, values: Mapping[str, float | None], step: int) -> str:
        """Send the numbers that are not None; return a failure or ""."""
        if self._accelerator is None:
            return ""
        known = {key: value for key, value in values.items() if value is not None}
        return self._guarded(lambda: self._accelerator.log(known, step=step))

    def log_previews(self, previews: Sequence[Image] | Sequence[str], step: int) -> str:
        """Send images or texts; return a failure or ""."""
        if self._accelerator is None:
            return ""
        texts = {f"preview {index}": text for index, text in enumerate(previews) if isinstance(text, str)}
        if texts:
            return self._guarded(lambda: self._accelerator.log(texts, step=step))
        import numpy as np

        arrays = [np.asarray(image.convert("RGB")) for image in previews if not isinstance(image, str)]

        def send() -> None:
            for tracker in self._accelerator.trackers:
                if hasattr(tracker, "log_images"):
                    options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                    tracker.log_images({"previews": np.stack(arrays) if options else arrays}, step=step, **options)

        return self._guarded(send)

    def end(self) -> None:
        """Finish the run."""
        if self._accelerator is not None:
            self._guarded(self._accelerator.end_training)
            self._accelerator = None

    def _guarded(self, call: Callable[[], object]) -> str:
        try:
            call()
        except Exception as error:  # other packages raise anything
            self._accelerator = None
            names = ", ".join(map(str, self._config.trackers))
            return f"Trackers ({names}) stopped: {' '.join(str(error).split())[:200] or type(error).__name__}"
        return ""


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Return dotted keys with plain values, which accelerate's trackers take."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, (bool, int, float, str)) else str(value)
