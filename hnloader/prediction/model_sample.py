"""Recognize the model of a predictor by a few numbers, in any dtype."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from hnloader.attention.layout import AttentionSite, find_sites
from hnloader.attention.matching import check_match
from hnloader.errors import NoMatchingSitesError, OtherModelError
from hnloader.prediction.model_side import ModelSide
from hnloader.prediction.predictor_file import ModelSample, StoredPredictor
from hnloader.texts import shown

# Relative difference: rounding to bfloat16 changes a mean by less, and another training by more.
_SAME_WEIGHTS = 0.02


def sample_of(side: ModelSide) -> ModelSample:
    """Return the numbers of a model."""
    weights = itertools.chain.from_iterable(map(_weights, find_sites(side.network)))
    return ModelSample(side.probe(), torch.stack([weight.detach().float().abs().mean().cpu() for weight in weights]))


def check_model(stored: StoredPredictor, side: ModelSide) -> str:
    """Compare a model with that of a predictor.

    Returns:
        A note if the weights differ, "" if they are the same.

    Raises:
        OtherModelError: The predictor reads other examples than the model, or other values of them, or the model lacks
            a part of the hypernetworks.
        NoMatchingSitesError: It has none of their attention layers.
    """
    predictor, about, known = stored.predictor, stored.about, stored.sample
    advice = "Use a predictor for this model; `hnloader train-predictor` trains one."
    if predictor.kind != side.kind:
        raise OtherModelError(
            f"{stored.path}: the predictor reads {predictor.kind}s, and {shown(side.model.name)} is a model for "
            f"{side.kind}s. {advice}"
        )
    label = _Labeled(stored.path.name, [str(scope) for scope in predictor.scopes])
    try:
        mismatch = check_match(label, find_sites(side.network))
    except NoMatchingSitesError as error:
        raise NoMatchingSitesError(f"{error} {advice}") from error
    if mismatch is not None:
        raise OtherModelError(f"{mismatch} {advice}")
    found = sample_of(side)
    if found.probe.shape != known.probe.shape or _difference(found.probe, known.probe) > side.most_difference:
        raise OtherModelError(
            f"{stored.path}: the predictor reads the {side.reads} of {shown(about.model)}, and this model has "
            f"{side.differs}. {advice}"
        )
    same = found.projections.shape == known.projections.shape
    if same and _difference(found.projections, known.projections) <= _SAME_WEIGHTS:
        return ""
    return f"The predictor was trained on {about.model}. On this model, the style may be weaker."


class _Labeled:
    """The name and the scopes of a predictor's hypernetworks, for `check_match`."""

    def __init__(self, name: str, scopes: list[str]) -> None:
        self.name, self.scopes = name, scopes


def _weights(site: AttentionSite) -> Iterator[Tensor]:
    for name in site.slots_in_use:
        if name in site.module._modules:
            yield getattr(site.module, name).weight


def _difference(found: Tensor, known: Tensor) -> float:
    """Return the mean difference as a share of the mean size."""
    return float((found - known).abs().mean() / known.abs().mean().clamp(min=1e-6))
