"""Tensors of Apple's GPU as torch 1.12 and 1.13 wrote them: numpy's arrays inside the pickle, read without numpy."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

import hnloader
from hnloader import CorruptFileError, HypernetworkError, UnsupportedArchitectureError
from hnloader.embeddings import load_embedding
from hnloader.formats import big_arguments, pickles
from hnloader.scanning import scan

FILES = Path(__file__).parent / "mac"


class OfGPU:
    """Pickled as torch pickled a tensor of Apple's GPU."""

    def __init__(self, array: object, dtype: torch.dtype = torch.float32) -> None:
        self.array, self.dtype = array, dtype

    def __reduce__(self) -> tuple[object, ...]:
        return torch._utils._rebuild_device_tensor_from_numpy, (self.array, self.dtype, "mps", False)


def arrays(width: int, seed: int, dtype: str = "f4") -> dict[str, numpy.ndarray]:
    random = numpy.random.default_rng(seed)
    shapes = {
        "linear.0.weight": (2 * width, width),
        "linear.0.bias": (2 * width,),
        "linear.1.weight": (width, 2 * width),
        "linear.1.bias": (width,),
    }
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def saved(sides: list[dict[str, object]], width: int, *, legacy: bool = False, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    content = {width: tuple(OrderedDict(side) for side in sides), "step": 1, "name": "ink"}
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return buffer.getvalue()


def both(width: int, **options: object) -> tuple[bytes, list[dict[str, numpy.ndarray]]]:
    numbers = [arrays(width, 0), arrays(width, 1)]
    return saved([{n: OfGPU(a) for n, a in side.items()} for side in numbers], width, **options), numbers  # type: ignore[arg-type]


def test_files_of_apple_gpus_load(tmp_path: Path) -> None:
    hypernetwork = hnloader.load(FILES / "hn_mac.pt")
    assert hypernetwork.widths == hnloader.inspect(FILES / "hn_mac.pt").widths == (8, 16)
    assert load_embedding(FILES / "emb_mac.pt").vectors.shape == (2, 768)
    for suffix in (".pt", ".safetensors"):
        hnloader.save(hypernetwork, tmp_path / f"a{suffix}")
        again = hnloader.load(tmp_path / f"a{suffix}").state_dict()
        assert all(torch.equal(again[name], value) for name, value in hypernetwork.state_dict().items())


@pytest.mark.parametrize(("name", "verdict"), [("hn_mac.pt", "safe"), ("emb_mac.pt", "safe")])
def test_files_of_apple_gpus_are_not_suspicious(name: str, verdict: str) -> None:
    found = scan(FILES / name)
    assert (found.verdict, found.findings) == (verdict, [])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("in_file", [False, True])
def test_numbers_equal_numpy(protocol: int, legacy: bool, in_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_file:  # as of a pickle above the limit, whose long texts are not read into memory
        monkeypatch.setattr(big_arguments, "_LONG", 100)
        monkeypatch.setattr("hnloader.formats.checkpoint.MAX_PICKLE_SIZE", 1000)
        monkeypatch.setattr("hnloader.formats.checkpoint._LEGACY_WINDOWS", (1000,))
    data, numbers = both(24, legacy=legacy, protocol=protocol)
    found = hnloader.load(io.BytesIO(data))
    for name, side in zip("kv", numbers, strict=True):
        state = found.side(24, name).state_dict()  # type: ignore[arg-type]
        assert all(numpy.array_equal(state[key].numpy(), value) for key, value in side.items())


@pytest.mark.parametrize(
    "changed",
    [
        lambda a: numpy.asfortranarray(a),
        lambda a: a[:, ::-1].copy()[:, ::-1],
        lambda a: numpy.ascontiguousarray(a.T).T,
    ],
    ids=["in Fortran's order", "reversed", "transposed"],
)
def test_order_of_values_is_kept(changed: object) -> None:
    numbers = [arrays(8, 0), arrays(8, 1)]
    sides = [{n: OfGPU(changed(a) if a.ndim == 2 else a) for n, a in side.items()} for side in numbers]  # type: ignore[operator]
    found = hnloader.load(io.BytesIO(saved(sides, 8))).side(8, "k").state_dict()  # type: ignore[arg-type]
    assert all(numpy.array_equal(found[name].numpy(), value) for name, value in numbers[0].items())


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_other_precisions_are_kept(dtype: str) -> None:
    numbers = arrays(8, 0, dtype)
    kind = torch.from_numpy(numbers["linear.0.bias"]).dtype
    data = saved([{n: OfGPU(a, kind) for n, a in numbers.items()}] * 2, 8)
    found: Tensor = hnloader.load(io.BytesIO(data)).side(8, "v").state_dict()["linear.0.bias"]
    assert found.dtype == kind and numpy.array_equal(found.numpy(), numbers["linear.0.bias"])


@pytest.mark.parametrize(
    "array",
    [
        numpy.array([object()]),
        numpy.zeros(16, ">f4"),
        numpy.zeros(16, [("a", "f4")]),
        numpy.zeros(16, "S4"),
        "text",
        None,
    ],
    ids=["objects", "of another byte order", "records", "texts", "a text", "nothing"],
)
def test_other_arrays_are_refused(array: object) -> None:
    side = {**{n: OfGPU(a) for n, a in arrays(8, 0).items()}, "linear.0.bias": OfGPU(array)}
    try:
        data = saved([side, side], 8)
    except Exception:  # object() cannot be pickled everywhere
        pytest.fail("it could not be made")
    with pytest.raises(HypernetworkError) as caught:
        hnloader.load(io.BytesIO(data))
    assert not isinstance(caught.value, CorruptFileError) or "storage" not in str(caught.value)


def test_mismatched_dtype_is_refused() -> None:
    side = {name: OfGPU(array, torch.float16) for name, array in arrays(8, 0).items()}
    with pytest.raises(UnsupportedArchitectureError):
        hnloader.load(io.BytesIO(saved([side, side], 8)))


def test_damage_in_long_text_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(big_arguments, "_LONG", 100)
    monkeypatch.setattr("hnloader.formats.checkpoint._LEGACY_WINDOWS", (1000,))
    monkeypatch.setattr(pickles, "MAX_PICKLE_SIZE", pickles.MAX_PICKLE_SIZE)
    data = bytearray(both(24, legacy=True)[0])
    at = data.index(b"linear.0.weight") + 600
    for byte in (0xFF, 0xC4):
        data[at] = byte
        with pytest.raises(CorruptFileError):
            hnloader.load(io.BytesIO(bytes(data)))


def test_numpy_is_not_imported() -> None:
    program = f"import sys; sys.modules['numpy'] = None; import hnloader; hnloader.load({str(FILES / 'hn_mac.pt')!r})"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
