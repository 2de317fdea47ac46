"""A hypernetwork made in memory is read back as what it was."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import torch

import hnloader
from hnloader import Architecture, Hypernetwork
from hnloader.embeddings import Embedding, save_embedding

ARCHITECTURES = [
    Architecture(),
    Architecture((1, 2, 1), "relu"),
    Architecture((1, 1.5, 0.5, 1), "swish", norm=True, dropout=(0, 0.3, 0.1, 0), activate_output=True),
    Architecture((1, 2, 1), "prelu", residual="linear"),
    Architecture((1, 0.5, 1), None, residual="interpolate"),
]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_new_hypernetwork_is_read_back_with_its_architecture(
    architecture: Architecture, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = Hypernetwork.new((32, 48), architecture, name="new", metadata={"step": 7})
    path = tmp_path / f"file{suffix}"
    hnloader.save(made, path)

    read = hnloader.load(path)

    assert read.architecture == architecture
    assert read.name == "new"
    assert read.metadata == made.metadata
    assert read.metadata["step"] == 7
    context = torch.randn(2, 7, 48)
    for made_output, read_output in zip(made(context, 0.7), read(context, 0.7), strict=True):
        assert torch.equal(made_output, read_output)


def test_archive_has_only_members_that_webuis_accept(tmp_path: Path) -> None:
    """AUTOMATIC1111 refuses any other member; since 1.10 alone it allows a byte order."""
    hnloader.save(Hypernetwork.new((32, 48), Architecture(), name="new"), tmp_path / "new.pt")
    save_embedding(Embedding(torch.randn(2, 768), name="new"), tmp_path / "word.pt")
    for path in tmp_path.iterdir():
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                assert re.fullmatch(r"[^/]+/(data/\d+|version|data\.pkl)", name), name
        assert torch.load(path, weights_only=True)["name"] == "new"


def test_a_new_hypernetwork_can_be_trained() -> None:
    made = Hypernetwork.new((32,), Architecture((1, 2, 1), "relu"))
    k, v = made(torch.randn(2, 7, 32))
    (k.sum() + v.sum()).backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 2, 1), (1, 2, 2, 2, 1)])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_missing_dropout_rates_are_written_as_zeros(structure: tuple[float, ...], suffix: str, tmp_path: Path) -> None:
    made = Hypernetwork.new((32,), Architecture(structure, "relu"), name="new")
    hnloader.save(made, tmp_path / f"file{suffix}")
    read = hnloader.load(tmp_path / f"file{suffix}")
    assert read.metadata["dropout_structure"] == [0] * len(structure)
    context = torch.randn(2, 7, 32)
    for one, two in zip(made(context), read(context), strict=True):
        assert torch.equal(one, two)
