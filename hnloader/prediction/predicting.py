"""Predict a hypernetwork from examples of a style: images, or texts for a language model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hnloader.demo import language_model_folder, pipeline_folder, predictor_path, text_predictor_path
from hnloader.errors import DatasetError, HypernetworkError, OtherModelError
from hnloader.files import expanded, sha256_of
from hnloader.language_models import LanguageModel, is_language_model, load_language_model
from hnloader.network import Hypernetwork
from hnloader.pipelines import Model, load_model
from hnloader.prediction.image_side import ImageSide
from hnloader.prediction.model_sample import check_model
from hnloader.prediction.model_side import MOST_EXAMPLES, Examples, ModelSide, kind_of, label_of
from hnloader.prediction.predictor import Emitted, spread_of
from hnloader.prediction.predictor_file import StoredPredictor, load_predictor
from hnloader.prediction.style_encoder import ExampleKind
from hnloader.prediction.text_side import TextSide

__all__ = ["MOST_EXAMPLES", "Examples", "Prediction", "StylePredictor", "load_model_of", "predictor_for"]


@dataclass(frozen=True)
class Prediction:
    """A predicted hypernetwork, and notes for the user."""

    hypernetwork: Hypernetwork
    notes: tuple[str, ...]


class StylePredictor:
    """A predictor with its model.

    Args:
        stored: The predictor.
        model: The model. Its weights are frozen.

    Raises:
        OtherModelError: The predictor is for another model.
        NoMatchingSitesError: The model has none of the attention layers of the hypernetworks.
    """

    def __init__(self, stored: StoredPredictor, model: Model | LanguageModel) -> None:
        self.stored, self.model = stored, model
        self._side = _side_of(model, stored.about.resolution)
        note = check_model(stored, self._side)
        self._notes = (note,) if note else ()
        self._predictor = stored.predictor.to(self._side.device)
        self._hash = sha256_of(stored.path)

    def predict(
        self, examples: Examples, *, toward: Examples | None = None, mix: float = 0.5, name: str = ""
    ) -> Prediction:
        """Predict a hypernetwork; see `hnloader.predict`."""
        if not 0 <= mix <= 1:
            raise HypernetworkError(f"Mix: expected a number from 0 to 1, got {float(mix):g}. 0 is the first style.")
        emitted, notes, used = self._emit(examples)
        if toward is not None:
            other, more, also = self._emit(toward)
            emitted, notes, used = emitted.mixed(other, mix), [*notes, *more], [*used, *also]
        made = self._predictor.hypernetwork(emitted, name).cpu()
        made.metadata |= self._metadata(used, name) | ({} if toward is None else {"mix": mix})
        return Prediction(made, (*self._notes, *notes))

    def _metadata(self, digests: Sequence[str], name: str) -> dict[str, object]:
        return {
            "step": 0,
            "name": name,
            "sd_checkpoint": self.model.hash,
            "sd_checkpoint_name": self.model.name,
            "predictor": self.stored.path.name,
            "predictor_sha256": self._hash,
            f"{self._side.kind}s_sha256": list(digests),
        }

    @torch.no_grad()
    def _emit(self, examples: Examples) -> tuple[Emitted, list[str], list[str]]:
        """Return what the predictor emits for examples, notes, and the sha256 of the files that it used."""
        found = self._side.values_of(examples)
        encoder = self._predictor.encoder
        summaries = torch.cat([encoder.summaries(values.unsqueeze(0)) for values in found.values])
        emitted = self._predictor.emit(encoder(summaries.unsqueeze(0)))
        spread = spread_of(self._predictor.emit(encoder(summaries.unsqueeze(1))))
        usual, kind = self.stored.about.spread, self._side.kind
        if usual and spread > usual:
            found.notes.append(
                f"{label_of(examples, kind)}: the {kind}s look unrelated. Their styles differ by {spread:.2f}, and "
                f"those of one style by at most {usual:.2f}. Use {kind}s of one style."
            )
        return emitted, found.notes, found.digests


def _side_of(model: Model | LanguageModel, size: int) -> ModelSide:
    return TextSide(model, size) if isinstance(model, LanguageModel) else ImageSide(model, size)


def predictor_for(
    styles: Sequence[Examples],
    model: str | os.PathLike[str] | None = None,
    predictor: str | os.PathLike[str] | None = None,
) -> StoredPredictor:
    """Load the predictor of a model, or the bundled one for examples, before the model is loaded.

    Args:
        styles: The examples of each style.
        model: The model. Default: the bundled one that the examples are for.
        predictor: Its file. Default: that of the bundled model.

    Raises:
        DatasetError: The examples are of another kind than the predictor reads.
        OtherModelError: The model is of another kind than the predictor reads.
        HypernetworkError: The predictor cannot be read.
    """
    given = [kind_of(each) for each in styles]
    needed = _kind_of_model(model)
    if predictor is None:
        kind = needed or next(filter(None, given), "image")
        predictor = text_predictor_path() if kind == "text" else predictor_path()
    stored = load_predictor(predictor)
    reads = stored.predictor.kind
    if needed not in (None, reads):
        raise OtherModelError(
            f"{stored.path}: the predictor reads {reads}s, and {model} is a model for {needed}s. Use a predictor for "
            "this model; `hnloader train-predictor` trains one."
        )
    for each, found in zip(styles, given, strict=True):
        if found not in (None, reads):
            raise DatasetError(
                f"{label_of(each, reads)}: found {found}s, and the predictor {stored.path.name} reads {reads}s. Give "
                f"{reads}s."
            )
    return stored


def _kind_of_model(model: str | os.PathLike[str] | None) -> ExampleKind | None:
    """Return the kind of examples for a model by its files; None without files, such as for a name on the Hub."""
    if model is None or not expanded(model).exists():
        return None
    return "text" if is_language_model(model) else "image"


def load_model_of(
    stored: StoredPredictor, model: str | os.PathLike[str] | None, device: str = "auto", config: Path | None = None
) -> Model | LanguageModel:
    """Load the model of a predictor in float32; None for the bundled one."""
    if stored.predictor.kind == "text":
        return load_language_model(language_model_folder() if model is None else model, device=device, dtype="float32")
    return load_model(pipeline_folder() if model is None else model, device=device, dtype="float32", config=config)
