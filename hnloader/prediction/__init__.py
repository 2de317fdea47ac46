"""Predict hypernetworks from images, and train the networks that do. docs/predict.md is the guide."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from hnloader.errors import MissingExtraError, install_advice

if TYPE_CHECKING:
    from hnloader.network import Hypernetwork
    from hnloader.prediction.predicting import Images

__all__ = ["predict"]


def predict(
    images: Images,
    *,
    model: str | os.PathLike[str] | None = None,
    predictor: str | os.PathLike[str] | None = None,
    toward: Images | None = None,
    mix: float = 0.5,
    name: str = "style",
    device: str = "auto",
) -> Hypernetwork:
    """Predict a hypernetwork from 1 to 20 images of a style, without training.

    Args:
        images: A folder, a file, or several files. Of more than 20 images, the first 20 count.
        model: A diffusers folder, a checkpoint or a name on the Hugging Face Hub. Default: the bundled pipeline.
        predictor: A file that `hnloader train-predictor` wrote for this model. Default: that of the bundled pipeline.
        toward: Images of a second style, to mix both. Default: None.
        mix: Share of the second style, 0 to 1. Default: 0.5.
        name: Name of the hypernetwork. Default: "style".
        device: "auto", "cpu", "cuda", ... Default: a GPU, if any.

    Returns:
        The hypernetwork. Its metadata names the predictor and the images. Notes are issued as warnings.

    Raises:
        DatasetError: None of the images is usable.
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
        from hnloader.demo import pipeline_folder, predictor_path
        from hnloader.pipelines import load_model
        from hnloader.prediction.predicting import StylePredictor
        from hnloader.prediction.predictor_file import load_predictor
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"Predicting requires {error.name}. {install_advice('train')}.") from error
    stored = load_predictor(predictor_path() if predictor is None else predictor)
    loaded = load_model(pipeline_folder() if model is None else model, device=device, dtype="float32")
    found = StylePredictor(stored, loaded).predict(images, toward=toward, mix=mix, name=name)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return found.hypernetwork
