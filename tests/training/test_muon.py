from __future__ import annotations

import pytest
import torch
from torch import nn

from hnloader.training.muon import Muon


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((12, 48), (48, 12), (16, 16), (12,))]


def train(given: list[nn.Parameter], *optimizers: torch.optim.Optimizer, steps: int = 6) -> None:
    for step in range(steps):
        for value in given:
            value.grad = None
        sum((value * (value - step) ** 2).sum() for value in given).backward()
        for optimizer in optimizers:
            optimizer.step()


def test_matrices_have_the_steps_of_torchs_muon_and_vectors_those_of_adamw() -> None:
    ours, theirs = parameters(), parameters()
    train(ours, Muon(ours, 1e-2, 0.1))
    muon = torch.optim.Muon(theirs[:3], 1e-2, 0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[3:], 1e-2, weight_decay=0.1)
    train(theirs, muon, adamw)
    for start, one, other in zip(parameters()[:3], ours[:3], theirs[:3], strict=True):
        moved = (other - start).norm()
        assert (one - other).norm() < 0.02 * moved  # torch's Muon computes in bfloat16
    assert torch.equal(ours[3], theirs[3])


def test_a_step_is_nearly_orthogonal_and_has_the_size_of_adamws() -> None:
    given = parameters()[:2]
    before = [value.detach().clone() for value in given]
    train(given, Muon(given, 1e-2), steps=1)
    for start, value in zip(before, given, strict=True):
        step = (start - value.detach()) / 1e-2
        singular = torch.linalg.svdvals(step) / (0.2 * 48**0.5)
        assert 0.5 < float(singular.min()) <= float(singular.max()) < 1.4
        assert step.square().mean().sqrt() == pytest.approx(0.2, rel=0.3)


def test_a_matrix_without_gradient_stays() -> None:
    given = parameters()
    kept = given[2].detach().clone()
    optimizer = Muon(given, 1e-2, 0.1)
    given[0].square().sum().backward()
    optimizer.step()
    assert torch.equal(given[2].detach(), kept)
