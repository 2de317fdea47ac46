"""A training run without gradients is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hnloader.errors import HypernetworkError
from hnloader.training import prepare, read_config, schema
from tests.support.trainings import Run, raises


@pytest.mark.parametrize("method", ["hypernetwork", "embedding"])
def test_missing_gradients_are_an_error(method: str, settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(method=method))
    before = [parameter.detach().clone() for parameter in training.adapter.parameters]
    real = training.task.denoiser.losses

    def cut(*given: Any) -> Any:
        losses = real(*given)
        return losses.detach().requires_grad_() if losses.requires_grad else losses

    monkeypatch.setattr(training.task.denoiser, "losses", cut)
    with raises(HypernetworkError, "Step 1:", f"no gradient reaches the {method}"):
        training.run()
    assert not training.output.exists()
    assert all(torch.equal(a, b) for a, b in zip(before, training.adapter.parameters, strict=True))


@pytest.mark.parametrize("steps", [3, 40])
def test_zero_gradients_are_an_error(steps: int, settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(steps=steps, hypernetwork__norm=False, hypernetwork__dropout=0))
    real = training.task.denoiser.losses
    monkeypatch.setattr(training.task.denoiser, "losses", lambda *given: real(*given) * 0)
    with raises(HypernetworkError, f"Step {min(steps, 10)}:", "no gradient"):
        training.run()


def test_a_few_steps_without_gradients_are_allowed(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepare(settings_of(hypernetwork__norm=False))
    real, calls = training.task.denoiser.losses, iter(range(1000))
    monkeypatch.setattr(training.task.denoiser, "losses", lambda *given: real(*given) * float(next(calls) > 70))
    training.config = read_config(None, {**schema.plain(training.config), "validate_every_n_steps": 0})
    monkeypatch.setattr(training.task.denoiser, "losses", lambda *given: real(*given) * float(next(calls) > 5))
    assert training.run().step == 12
