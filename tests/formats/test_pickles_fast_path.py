"""The fast path for usual tensors gives the same as the opcodes one by one."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnloader.formats import pickles
from hnloader.formats.outgoing import Lazy
from hnloader.formats.pickles import read_pickle
from hnloader.formats.torch_zip import _Pickler
from lab.fuzz.differential import compare_ways

SIZES = st.integers(1, 255) | st.integers(256, 65_535) | st.integers(65_536, 2**31 - 1)
SHAPES = st.tuples(SIZES) | st.tuples(st.integers(1, 70_000), st.integers(1, 10_000))
DTYPES = st.sampled_from(["float32", "float16"])


def pickled(shapes: list[tuple[int, ...]], dtypes: list[str]) -> bytes:
    data = io.BytesIO()
    tensors = [Lazy(shape, dtype, torch.empty) for shape, dtype in zip(shapes, dtypes, strict=True)]
    _Pickler(data).dump({f"linear.{index}.weight": tensor for index, tensor in enumerate(tensors)})
    return data.getvalue()


@given(st.lists(st.tuples(SHAPES, DTYPES), max_size=60))
def test_tensors_of_all_sizes(described: list[tuple[tuple[int, ...], str]]) -> None:
    data = pickled([shape for shape, _ in described], [dtype for _, dtype in described])
    found = compare_ways(data)
    for shape, _ in described:
        assert f"shape={shape}" in found
    machine = pickles._Machine(data, 0)
    machine.run()
    # The first one of each dtype names what the others get from the memo.
    assert machine.usual_tensors == len(described) - len({dtype for _, dtype in described})


@given(
    st.integers(2, 45),
    st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 255) | st.sampled_from(b"hqr(tQRKMJ\x85\x86\x89)X.0")),
        max_size=4,
    ),
)
def test_damaged_bytes(count: int, damage: list[tuple[int, int]]) -> None:
    data = bytearray(pickled([(320, 640 + index) for index in range(count)], ["float32"] * count))
    for at, byte in damage:
        data[at % len(data)] = byte
    compare_ways(bytes(data))


def test_replaced_memo_entries_are_not_reused() -> None:
    data = pickled([(320, 1), (320, 2), (320, 3)], ["float32"] * 3)
    match = pickles._USUAL_TENSOR.search(data)
    assert match is not None
    gets = [
        index
        for index in range(1, match.re.groups + 1)
        if len(match[index] or b"") == 1 and data[match.start(index) - 1] == ord("h")
    ]
    puts = [index for index in range(1, match.re.groups + 1) if (match[index] or b"").startswith(b"q")]
    assert len(gets) == 5 and len(puts) == 7
    plain = compare_ways(data)
    outcomes = set()
    for get in gets:
        for put in puts:
            for code in (b"q" + match[get], b"r" + match[get] + b"\0\0\0"):
                changed = data[: match.start(put)] + code + data[match.end(put) :]
                outcomes.add(compare_ways(changed))
    assert plain in outcomes and len(outcomes) > 5  # such as a call of a tuple


@pytest.mark.parametrize("size", [0, 1, 3, 4, 255])
def test_key_of_another_length(size: int) -> None:
    data = pickled([(320, 1), (320, 2)], ["float32"] * 2)
    assert data.count(b"X\x01\0\0\x001q") == 1
    compare_ways(data.replace(b"X\x01\0\0\x001q", b"X" + bytes([size]) + b"\0\0\x001q"))


def test_more_tensors_than_the_fast_path_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickled([(index,) for index in range(50)], ["float32"] * 50)
    wanted = repr(read_pickle(data))
    monkeypatch.setattr(pickles, "_MAX_USUAL_TENSORS", 20)
    assert repr(read_pickle(data)) == wanted
