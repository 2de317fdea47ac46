"""Predict hypernetworks from images or texts, and train the networks that do. docs/predict.md is the guide."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from hnloader.errors import MissingExtraError, install_advice

if TYPE_CHECKING:
    from hnloader.network import Hypernetwork
    from hnloader.prediction.predicting import Examples

__all__ = ["predict"]


def predict(
    style: Examples,
    *,
    model: str | os.PathLike[str] | None = None,
    predictor: str | os.PathLike[str] | None = None,
    toward: Examples | None = None,
    mix: float = 0.5,
    name: str = "style",
    device: str = "auto",
) -> Hypernetwork:
    """Predict a hypernetwork from 1 to 20 images or texts of a style, without training.

    Args:
        style: A folder, a file, or several files. Text files (.txt, .jsonl) without images are for a language model.
            Of more than 20 images or texts, the first 20 count. A text that the model cannot read at once counts as
            several.
        model: A diffusers folder, a checkpoint, a folder of transformers, a `.gguf` file, or a name on the Hugging Face
            Hub. Default: the bundled pipeline, or for texts the bundled language model.
        predictor: A file that `hnloader train-predictor` wrote for this model. Default: that of the bundled model.
        toward: Images or texts of a second style, to mix both. Default: None.
        mix: Share of the second style, 0 to 1. Default: 0.5.
        name: Name of the hypernetwork. Default: "style".
        device: "auto", "cpu", "cuda", ... Default: a GPU, if any.

    Returns:
        The hypernetwork, float32 on the CPU. Its metadata names the predictor, and the images or texts by their
        sha256. Notes are issued as warnings.

    Raises:
        DatasetError: None of the images or texts is usable, or the predictor reads the other kind.
        OtherModelError: The predictor is for another model, or is another kind of file.
        NoMatchingSitesError: The model has none of the attention layers of the hypernetworks.
        ModelError: The model cannot be loaded.
        HypernetworkError: The predictor cannot be read, or `mix` is out of range.
        MissingExtraError: A package is missing.

    Example:
        >>> import tempfile
        >>> import hnloader
        >>> from hnloader.demo.drawing import draw_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     hn = hnloader.predict(draw_images("blueprint", folder, count=4), device="cpu")
        >>> hn.widths
        (64, 96, 112, 128)
    """
    try:
        from hnloader.prediction.predicting import StylePredictor, load_model_of, predictor_for
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"Predicting requires {error.name}. {install_advice('train')}.") from error
    stored = predictor_for([style] if toward is None else [style, toward], model, predictor)
    loaded = load_model_of(stored, model, device)
    found = StylePredictor(stored, loaded).predict(style, toward=toward, mix=mix, name=name)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return found.hypernetwork
