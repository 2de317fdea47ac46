"""The cache of latents and text states."""

from __future__ import annotations

from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

from hnloader.training import prepare
from hnloader.training.run_folder import run_folder
from tests.support.trainings import config_in


def test_invalid_cached_tensors_are_replaced(copied: Path, tiny_model: Path) -> None:
    cached = sorted((run_folder(copied / "style.pt") / "cache").glob("*.safetensors"))
    expected = prepare(config_in(copied, tiny_model), resume=True).validator.loss()
    for change in (
        lambda tensors: {name: tensor[:1] for name, tensor in tensors.items()},
        lambda tensors: {name: tensor.unsqueeze(0) for name, tensor in tensors.items()},
        lambda tensors: {name: tensor.to(torch.float16) for name, tensor in tensors.items()},
        lambda tensors: {name: tensor[..., :1] for name, tensor in tensors.items()},
        lambda tensors: {name: torch.zeros(0) for name, tensor in tensors.items()},
        lambda tensors: {},
    ):
        for path in cached:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            changed_tensors = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
            save_file(changed_tensors, path, metadata=metadata)
        training = prepare(config_in(copied, tiny_model), resume=True)
        assert training.validator.loss() == expected


def test_cached_tensors_are_copies(copied: Path, tiny_model: Path) -> None:
    """Mapped files would change them, and Linux limits how many a process can map."""
    training = prepare(config_in(copied, tiny_model), resume=True)
    expected = training.validator.loss()
    for path in (run_folder(copied / "style.pt") / "cache").glob("*.safetensors"):
        path.write_bytes(b"\1" * path.stat().st_size)  # in place
    assert training.validator.loss() == expected
