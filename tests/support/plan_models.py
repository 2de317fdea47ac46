"""Hypernetworks of every architecture, and the exact path to compare plans with."""

from __future__ import annotations

import torch

from hnloader.attention import attach
from hnloader.attention.model import attached_model
from hnloader.attention.plan import SidePlan
from hnloader.network import Architecture, Hypernetwork
from tests.support.small_models import (
    WIDTHS,
    make_hypernetwork,
    make_unet,
    run,
)

ALL = WIDTHS["sd1"]
RELU = make_hypernetwork(ALL)


def make(architecture: Architecture, seed: int = 0, widths=ALL, name: str = "") -> Hypernetwork:
    """Make a random hypernetwork, strong enough to change the output."""
    torch.manual_seed(seed + 200)
    hypernetwork = Hypernetwork.new(tuple(widths), architecture, name=name or f"{architecture}")
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim > 1 else 0.2))
    return hypernetwork.requires_grad_(False)


AFFINE = make(Architecture(), name="affine")
KINDS = {
    "affine": AFFINE,
    "narrow affine": make(Architecture((1, 0.25, 1))),
    "deep affine": make(Architecture((1, 2, 2, 1), dropout=(0, 0.3, 0.3, 0))),
    "relu": RELU,
    "norm": make(Architecture((1, 2, 1), norm=True)),
    "norm and dropout": make(Architecture((1, 2, 2, 1), "mish", norm=True, dropout=(0, 0.3, 0.3, 0))),
    "activated output": make(Architecture((1, 1.5, 1), "leakyrelu", activate_output=True)),
    "prelu": make(Architecture((1, 2, 1), "prelu")),
    "tanh": make(Architecture((1, 2, 1), "tanh")),
    "residual": make(Architecture((1, 2, 1), "relu", residual="linear")),
    "affine residual": make(Architecture((1, 2, 1), residual="interpolate")),
}


def exactly(hypernetworks, *, unet=None, strength=1.0, **inputs):
    """Compute the output of the exact path on a fresh model."""
    unet = unet or make_unet("sd1")
    with attach(unet, hypernetworks, strength, exact=True) as attachment:
        assert {row.plan for row in attachment.explain().rows} <= {"exact", "none"}
        return run(unet, **inputs)


def plans(attachment, kind=None):
    """Return the names of the plans of an attachment."""
    return {row.plan for row in attachment.explain().rows if kind in (None, row.kind)}


def projections(unet):
    """Return the projections of a model with their states."""
    return list(attached_model(unet).assembly().projections.values())


def folds(unet):
    """Return the folds of a model."""
    return [projection.fold for projection in projections(unet) if projection.fold is not None]


def counted(monkeypatch):
    """Count the computations of texts."""
    calls = []
    original = SidePlan.__call__

    def call(self, context):
        if self.name == "cache":
            calls.append(self)
        return original(self, context)

    monkeypatch.setattr(SidePlan, "__call__", call)
    return calls


def in_a_call(unet, function, sample=None):
    """Call a function in the place of a model's forward, where hypernetworks act."""
    unet.forward = lambda *args: function()
    try:
        return unet(torch.zeros(1, 4, 8, 8) if sample is None else sample, 0)
    finally:
        del unet.forward
