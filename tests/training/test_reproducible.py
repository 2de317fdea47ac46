"""What makes a training on a graphics card come out the same; what it does there, `python -m lab.gpu` shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import hnloader
from hnloader.training import prepare, read_config
from hnloader.training.loop import Training
from hnloader.training.reproducible import reproducible, without

CUDA = torch.device("cuda")


def switches() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(False)


def test_the_switches_are_put_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = switches()
    with reproducible(CUDA):
        assert switches() == (True, False, True, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert switches() == before
    with pytest.raises(ZeroDivisionError), reproducible(CUDA):
        raise ZeroDivisionError
    assert switches() == before


def test_the_processor_needs_nothing_and_a_users_own_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = switches()
    with reproducible(torch.device("cpu")):
        assert switches() == before
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with reproducible(CUDA):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_other_errors_are_not_taken_for_it() -> None:
    refusal = RuntimeError("histc does not have a deterministic implementation, but you set ...")
    assert not without(refusal)  # nobody asked for it
    with reproducible(CUDA):
        assert not without(RuntimeError("CUDA error: out of memory"))
        assert torch.are_deterministic_algorithms_enabled()
        assert without(refusal)
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def make(tiny_model: Path, images: Path, tmp_path: Path) -> Callable[..., Any]:
    def made(name: str, **changes: object) -> Training:
        given = {"model": str(tiny_model), "images": str(images), "output": str(tmp_path / name / "style.pt")}
        quick = {"steps": 3, "measure_every": 0, "previews.every": 0, "reproducible": True}
        return prepare(read_config(None, {**given, **quick, **changes}))

    return made


def test_an_operation_that_has_no_such_way_costs_the_order_and_not_the_training(make: Callable[..., Any]) -> None:
    """The refusal comes in the midst of the backward pass, when some gradients are there already."""
    expected = hnloader.load(make("whole").run().output).state_dict()
    training = make("refused")

    def refuse(gradient: torch.Tensor) -> torch.Tensor:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("some_backward_cuda does not have a deterministic implementation")
        return gradient

    for parameter in training.adapter.parameters[::2]:
        parameter.register_hook(refuse)
    torch.use_deterministic_algorithms(True)
    told: list[str] = []
    found = hnloader.load(training.run(lambda event: told.append(event.message)).output).state_dict()
    assert sum("some_backward_cuda does not" in each for each in told) == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_is_asked_for(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("hnloader.training.loop.reproducible", lambda device: seen.append(device) or nullcontext())
    training = make("asked")
    assert "CUBLAS_WORKSPACE_CONFIG" in os.environ
    training.run()
    assert seen == [torch.device("cpu")]
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    make("not asked", reproducible=False).run()
    assert len(seen) == 1
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
