"""Recognize the model of a predictor by a few numbers, in any dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hnloader.attention.layout import find_sites
from hnloader.attention.matching import check_match
from hnloader.errors import NoMatchingSitesError, OtherModelError
from hnloader.prediction.predictor_file import ModelSample, StoredPredictor
from hnloader.texts import shown
from hnloader.training.denoiser import Denoiser
from hnloader.training.pixels import Sample

# Relative differences: rounding to bfloat16 changes a mean by less, and another training by more.
_SAME_LATENTS, _SAME_WEIGHTS = 0.05, 0.02
_SIDE = 64  # pixels of the test image; every model's VAE takes it


def sample_of(denoiser: Denoiser) -> ModelSample:
    """Return the numbers of a model."""
    probe, _ = denoiser.encode_image(Sample(_test_image(), None, (_SIDE, _SIDE), (0, 0)))
    weights = [weight for site in find_sites(denoiser.unet) for weight in _weights(site.module)]
    return ModelSample(probe, torch.stack([weight.detach().float().abs().mean().cpu() for weight in weights]))


def check_model(stored: StoredPredictor, denoiser: Denoiser) -> str:
    """Compare a model with that of a predictor.

    Returns:
        A note if the weights differ, "" if they are the same.

    Raises:
        OtherModelError: The model has another VAE, or lacks a part of the hypernetworks.
        NoMatchingSitesError: It has none of their attention layers.
    """
    predictor, about, known = stored.predictor, stored.about, stored.sample
    advice = "Use a predictor for this model; `hnloader train-predictor` trains one."
    label = _Labeled(stored.path.name, [str(scope) for scope in predictor.scopes])
    try:
        mismatch = check_match(label, find_sites(denoiser.unet))
    except NoMatchingSitesError as error:
        raise NoMatchingSitesError(f"{error} {advice}") from error
    if mismatch is not None:
        raise OtherModelError(f"{mismatch} {advice}")
    found = sample_of(denoiser)
    if found.probe.shape != known.probe.shape or _difference(found.probe, known.probe) > _SAME_LATENTS:
        raise OtherModelError(
            f"{stored.path}: the predictor reads the latents of {shown(about.model)}, and this model has another VAE. "
            f"{advice}"
        )
    same = found.projections.shape == known.projections.shape
    if same and _difference(found.projections, known.projections) <= _SAME_WEIGHTS:
        return ""
    return f"The predictor was trained on {about.model}. On this model, the style may be weaker."


class _Labeled:
    """The name and the scopes of a predictor's hypernetworks, for `check_match`."""

    def __init__(self, name: str, scopes: list[str]) -> None:
        self.name, self.scopes = name, scopes


def _weights(layer: Any) -> list[Tensor]:
    return [getattr(layer, name).weight for name in ("to_k", "to_v") if hasattr(layer, name)]


def _difference(found: Tensor, known: Tensor) -> float:
    """Return the mean difference as a share of the mean size."""
    return float((found - known).abs().mean() / known.abs().mean().clamp(min=1e-6))


def _test_image() -> Tensor:
    """Return a colored image with slopes and edges, [3, side, side], -1 to 1."""
    axis = torch.linspace(-1, 1, _SIDE)
    red = axis.expand(_SIDE, _SIDE)
    blue = torch.where(red.abs() + red.t().abs() < 0.7, 1.0, -0.5)
    return torch.stack([red, red.t(), blue])
