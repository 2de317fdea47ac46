"""The probe of predictors: it finds what a style tells, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hnloader.demo.random_styles import RandomStyle, random_style
from lab.demo.predictor_probe import FACTS, drawn, explained


class KnownStyle(nn.Module):
    """Tells the ink and whether there is a paper, beside some noise."""

    def __init__(self, styles: list[RandomStyle]) -> None:
        super().__init__()
        known = torch.tensor([[*style.ink, style.share, float(bool(style.paper))] for style in styles])
        self.encoder = self
        self._numbers = torch.cat((known, torch.randn(len(styles), 3)), 1)

    def read(self, latents: Tensor) -> Tensor:
        return self._numbers


def test_the_probe_finds_what_a_style_tells() -> None:
    torch.manual_seed(0)
    styles = [random_style(np.random.default_rng((5, index))) for index in range(400)]
    found = explained(KnownStyle(styles), styles, torch.zeros(400, 1))  # type: ignore[arg-type]
    assert found.keys() == FACTS.keys()
    for name in ("has a paper", "color of a full ink", "share of the ink"):
        assert found[name] == pytest.approx(1, abs=0.02)
    for name in ("color of a plain paper", "change of a gradient, right and down"):
        assert found[name] < 0.2


def test_styles_are_drawn_again_as_they_were() -> None:
    (first, latents), (second, again) = drawn(2, 7), drawn(3, 7)
    assert first == second[:2]
    assert latents.shape == (2, 4, 4, 16, 16)
    assert torch.equal(latents, again[:2])
