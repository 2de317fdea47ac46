"""Train a predictor on a frozen model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch import nn

from hnloader.prediction.predictor import Predictor
from hnloader.prediction.predictor_file import About, ModelSample, save_predictor
from hnloader.prediction.row_hooks import RowHooks
from hnloader.training.adapters import Adapter, NamedModel


class PredictorAdapter(Adapter):
    """A predictor. The task chooses the sides of each batch: `hooks.applied`.

    Args:
        predictor: The predictor.
        network: The frozen model with the attention layers.
        sample: The numbers by which the predictor knows its model.
        about: Returns the facts for its file at a step.
        previous_steps: The steps of the file that it starts from.
        others: Parameters that are trained and not in its file.
    """

    def __init__(
        self,
        predictor: Predictor,
        network: nn.Module,
        sample: ModelSample,
        about: Callable[[int], About],
        *,
        previous_steps: int = 0,
        others: Iterable[nn.Parameter] = (),
    ) -> None:
        self.previous_steps = previous_steps
        self.predictor, self.hooks = predictor, RowHooks(network)
        self.parameters = [*predictor.parameters(), *others]
        self._sample, self._about = sample, about
        self._attached = False

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """See `Adapter`."""
        if self._attached:
            yield
            return
        self._attached = True
        try:
            with self.hooks.attached():
                yield
        finally:
            self._attached = False

    def enabled(self, *, training: bool) -> contextlib.AbstractContextManager[None]:
        """See `Adapter`."""
        return self.attached()

    def save(self, path: Path, step: int, model: NamedModel) -> None:
        """See `Adapter`."""
        save_predictor(path, self.predictor, self._about(step), self._sample)
