"""Damaged files from sound ones, and the errors that they raise."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hypothesis import strategies as st

import hnloader
from hnloader import HypernetworkError
from tests.support.builders import simple_tree
from tests.support.errors import raises

READERS: dict[str, Callable[[io.BytesIO], object]] = {"load": hnloader.load, "inspect": hnloader.inspect}


def saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def saved_safetensors(tmp_path: Path) -> bytes:
    path = tmp_path / "s.safetensors"
    hnloader.save(hnloader.load(io.BytesIO(saved(simple_tree()))), path)
    return path.read_bytes()


def rezipped(
    data: bytes, change: Callable[[str, bytes], bytes | None] = lambda name, content: content, **options: int
) -> bytes:
    """The archive with its members changed; a member for which `change` gives None is left out."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(result, "w", **options) as changed:
        for info in archive.infolist():
            content = change(info.filename, archive.read(info))
            if content is not None:
                changed.writestr(info.filename, content)
    return result.getvalue()


def assert_refused(
    data: bytes, kind: type[HypernetworkError], *facts: object, readers: Sequence[str] = ("load", "inspect")
) -> None:
    for reader in readers:
        with raises(kind, *facts):
            READERS[reader](io.BytesIO(data))


def outcome(data: bytes) -> object:
    """Return the loaded tensors and metadata; None for an error of the package."""
    try:
        hypernetwork = hnloader.load(io.BytesIO(data))
    except HypernetworkError as error:
        assert str(error)
        return None
    return {name: tensor.tolist() for name, tensor in hypernetwork.state_dict().items()}, hypernetwork.metadata


ZIP = saved(simple_tree())


LEGACY = saved(simple_tree(), legacy=True)


flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def flipped(data: bytes, changes: list[tuple[float, int]]) -> bytes:
    result = bytearray(data)
    for place, mask in changes:
        result[int(len(data) * place)] ^= mask
    return bytes(result)


def tensor_code(shape: bytes, stride: bytes, offset: bytes = b"K\x00", count: bytes = b"K\x80") -> bytes:
    """A tensor on the storage "0" of float32, each part as the opcodes that make it."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"
    arguments = storage + offset + shape + stride + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def with_extra(code: bytes) -> bytes:
    """The small file with one more piece of metadata, made by `code`."""

    def change(name: str, content: bytes) -> bytes:
        return content[:-1] + b"X\x01\x00\x00\x00x" + code + b"s." if name.endswith("/data.pkl") else content

    return rezipped(ZIP, change)


HUGE = b"\x8a\x09" + (1 << 70).to_bytes(9, "little")


def assert_as_torch(data: bytes) -> None:
    found = hnloader.load(io.BytesIO(data))
    expected = torch.load(io.BytesIO(data), weights_only=True)
    for width in found.widths:
        for index, side in enumerate(("k", "v")):
            stored = {name.replace("linear1.", "linear.0.").replace("linear2.", "linear.1."): tensor
                      for name, tensor in expected[width][index].items()}  # fmt: skip
            own = found.side(width, side).state_dict()
            assert own.keys() == stored.keys()
            for name, tensor in own.items():
                assert tensor.dtype == stored[name].dtype
                assert torch.equal(tensor, stored[name])
    assert found.metadata == {key: value for key, value in expected.items() if isinstance(key, str)}
