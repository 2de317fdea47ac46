"""Large tensors pass through a conversion in pieces, within bounded memory."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

import hnloader
from hnloader import CorruptFileError
from hnloader.conversion import convert, verify
from hnloader.formats.source import PIECE_SIZE

# A weight of 720 x 1440 values: 3.96 pieces in float32, 1.98 in float16.
WIDTH = 720


def large(dtype: torch.dtype = torch.float32) -> dict[object, object]:
    """A file whose weights are larger than a piece, of no whole number of pieces."""
    torch.manual_seed(0)

    def side() -> dict[str, torch.Tensor]:
        shapes = {
            "linear.0.weight": (2 * WIDTH, WIDTH),
            "linear.0.bias": (2 * WIDTH,),
            "linear.1.weight": (WIDTH, 2 * WIDTH),
            "linear.1.bias": (WIDTH,),
        }
        return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}

    keys = {"step": 1, "name": "large", "layer_structure": [1, 2, 1], "activation_func": "linear"}
    return {WIDTH: (side(), side()), **keys}


def pack(given: Path, packed: Path) -> Path:
    """The same zip archive with its members compressed, as other programs may rewrite it."""
    with zipfile.ZipFile(given) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    return packed


def assert_same_tensors(path: Path, expected: dict[object, object]) -> None:
    read = torch.load(path, weights_only=True)
    for found, wanted in zip(read[WIDTH], expected[WIDTH], strict=True):  # type: ignore[call-overload]
        assert list(found) == list(wanted)
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("kind", ["zip", "legacy", "packed", "views", "float16"])
def test_round_trips_of_every_container(kind: str, tmp_path: Path) -> None:
    content = large(torch.float16 if kind == "float16" else torch.float32)
    if kind == "views":  # transposed, and all in one storage
        both = torch.randn(2, WIDTH, 2 * WIDTH)
        for side, tensor in zip(content[WIDTH], both, strict=True):  # type: ignore[call-overload]
            side["linear.0.weight"], side["linear.1.weight"] = tensor.T, tensor
    path = tmp_path / "style.pt"
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "packed":
        path = pack(path, tmp_path / "packed.pt")

    convert(path, tmp_path / "style.safetensors")
    convert(tmp_path / "style.safetensors", tmp_path / "back.pt")

    assert_same_tensors(tmp_path / "back.pt", content)
    assert verify(path, tmp_path / "back.pt") == ("tensors", "metadata", "outputs")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", [0, PIECE_SIZE // 4 - 1, PIECE_SIZE // 4, -1])
def test_nan_is_found_in_every_piece(place: int, legacy: bool, tmp_path: Path) -> None:
    content = large()
    content[WIDTH][1]["linear.1.weight"].view(-1)[place] = float("inf")  # type: ignore[call-overload, index]
    path = tmp_path / "style.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CorruptFileError, match=r"linear\.1\.weight of the v side of width 720 has 1 of 1,036,800"):
        convert(path, tmp_path / "style.safetensors", verify=False)
    assert [each.name for each in tmp_path.iterdir()] == ["style.pt"]


def test_overflowing_sums_are_no_error(tmp_path: Path) -> None:
    content = large()
    content[WIDTH][0]["linear.0.weight"].fill_(3e38)  # type: ignore[call-overload, index]
    torch.save(content, tmp_path / "style.pt")
    convert(tmp_path / "style.pt", tmp_path / "style.safetensors", verify=False)
    convert(tmp_path / "style.safetensors", tmp_path / "back.pt", verify=False)
    assert_same_tensors(tmp_path / "back.pt", content)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_damaged_bytes_are_found(place: float, tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    torch.save(large(), path)
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="CRC-32"):
        convert(path, tmp_path / "style.safetensors")
    with pytest.raises(CorruptFileError, match="CRC-32"):
        hnloader.load(path)
    assert [each.name for each in tmp_path.iterdir()] == ["style.pt"]


def test_without_verification_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the option's help says; the data pass through bit for bit even so."""
    path = tmp_path / "style.pt"
    torch.save(large(), path)
    sound = hashlib.sha256(path.read_bytes()).hexdigest()
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    made = convert(path, tmp_path / "style.safetensors", verify=False)
    back = convert(tmp_path / "style.safetensors", tmp_path / "back.pt", verify=False)
    assert (made.source_sha256, back.source_sha256, flushed) == (sound, None, [])
    assert_same_tensors(tmp_path / "back.pt", large())
    convert(path, tmp_path / "verified.safetensors")
    assert len(flushed) == 1

    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    convert(path, tmp_path / "damaged.safetensors", verify=False)
    with pytest.raises(CorruptFileError, match="CRC-32"):
        verify(path, tmp_path / "damaged.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("verify", "most"), [(False, 20), (True, 60)])  # MiB; each of the four weights has 36
@pytest.mark.parametrize("there", [True, False])
def test_memory_does_not_grow_with_the_file(there: bool, verify: bool, most: int, tmp_path: Path) -> None:
    architecture = hnloader.Architecture((1, 16, 1))
    made = hnloader.Hypernetwork.new((768,), architecture, name="large").requires_grad_(False)
    paths = [tmp_path / "style.pt", tmp_path / "style.safetensors"]
    source, target = paths if there else reversed(paths)
    hnloader.save(made, source)
    assert source.stat().st_size > 140 << 20

    tracemalloc.start()  # tensors read from a file are backed by Python bytes
    convert(source, target, verify=verify)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < most << 20
