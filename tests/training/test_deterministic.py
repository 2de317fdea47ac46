"""Deterministic training runs; `python -m lab.gpu` checks them on a GPU."""

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
from hnloader.training.deterministic import allow_nondeterministic, deterministic_algorithms
from hnloader.training.trainer import Trainer

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


def test_switches_are_restored_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = switches()
    with deterministic_algorithms(CUDA):
        assert switches() == (True, False, True, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert switches() == before
    with pytest.raises(ZeroDivisionError), deterministic_algorithms(CUDA):
        raise ZeroDivisionError
    assert switches() == before


def test_a_cpu_and_user_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = switches()
    with deterministic_algorithms(torch.device("cpu")):
        assert switches() == before
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    with deterministic_algorithms(CUDA):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_only_a_missing_deterministic_algorithm_turns_it_off() -> None:
    refusal = RuntimeError("histc does not have a deterministic implementation, but you set ...")
    assert not allow_nondeterministic(refusal)  # nobody asked for it
    with deterministic_algorithms(CUDA):
        assert not allow_nondeterministic(RuntimeError("CUDA error: out of memory"))
        assert torch.are_deterministic_algorithms_enabled()
        assert allow_nondeterministic(refusal)
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def make(tiny_model: Path, images: Path, tmp_path: Path) -> Callable[..., Any]:
    def made(name: str, **changes: object) -> Trainer:
        given = {"model": str(tiny_model), "images": str(images), "output": str(tmp_path / name / "style.pt")}
        quick = {"steps": 3, "validate_every_n_steps": 0, "previews.every_n_steps": 0, "deterministic": True}
        return prepare(read_config(None, {**given, **quick, **changes}))

    return made


def test_training_continues_without_a_deterministic_algorithm(make: Callable[..., Any]) -> None:
    """torch refuses during the backward pass, when some gradients exist."""
    expected = hnloader.load(make("whole").run().output).state_dict()
    training = make("refused")

    def refuse(gradient: torch.Tensor) -> torch.Tensor:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("some_backward_cuda does not have a deterministic implementation")
        return gradient

    for parameter in training.adapter.parameters[::2]:
        parameter.register_hook(refuse)
    torch.use_deterministic_algorithms(True)
    messages: list[str] = []
    found = hnloader.load(training.run(lambda event: messages.append(event.message)).output).state_dict()
    assert sum("some_backward_cuda does not" in each for each in messages) == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_setting_turns_it_on(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "hnloader.training.trainer.deterministic_algorithms", lambda device: seen.append(device) or nullcontext()
    )
    training = make("asked")
    assert "CUBLAS_WORKSPACE_CONFIG" in os.environ
    training.run()
    assert seen == [torch.device("cpu")]
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    make("not asked", deterministic=False).run()
    assert len(seen) == 1
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
