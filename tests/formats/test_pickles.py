"""Pickles that cost much for their size, or that other programs read differently, are refused."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hnloader
from hnloader import CorruptFileError, UnsafeFileError
from hnloader.formats import pickles
from hnloader.formats.pickles import MalformedPickleError, read_pickle
from tests.support.damage import assert_as_torch, assert_refused, with_extra
from tests.support.errors import raises


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60))
def test_random_opcodes_return_a_value_or_raise_malformed(data: bytes) -> None:
    try:
        read_pickle(b"\x80\x02" + data)
    except MalformedPickleError as error:
        assert str(error)


def refuse_pickle(code: bytes, fact: object) -> None:
    with raises(MalformedPickleError, fact):
        read_pickle(code)


def test_deep_nesting_is_refused() -> None:
    refuse_pickle(b"]" * 100_000 + b"a" * 99_999 + b".", pickles.MAX_DEPTH)
    refuse_pickle(b"N" + b"\x85" * 100_000 + b".", pickles.MAX_DEPTH)


def test_nesting_up_to_the_limit_loads() -> None:
    depth = pickles.MAX_DEPTH
    assert read_pickle(b"N" + b"\x85" * depth + b".").value is not None
    refuse_pickle(b"N" + b"\x85" * (depth + 1) + b".", pickles.MAX_DEPTH)


def test_billion_laughs_is_refused() -> None:
    code = b"K\x00q\x00"
    for level in range(1, 30):
        code += b"(" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"tq" + bytes([level])
    refuse_pickle(b"(" + code + b"t.", "500,000")


def test_billion_laughs_through_calls_is_refused() -> None:
    code = b"]q\x00(" + b"K\x00" * 1000 + b"e0"
    code += b"cbuiltins\nfrozenset\nh\x00\x85R0" * 5000
    refuse_pickle(code + b"N.", "500,000")


OLD_TEXTS = {
    "STRING": lambda data: b"S'" + data.decode("latin1").encode("unicode_escape") + b"'\n",
    "BINSTRING": lambda data: b"T" + struct.pack("<i", len(data)) + data,
    "SHORT_BINSTRING": lambda data: b"U" + bytes([len(data)]) + data,
}


@pytest.mark.parametrize("opcode", OLD_TEXTS)
def test_python_2_text_is_read_as_utf_8(opcode: str) -> None:
    code = OLD_TEXTS[opcode]("Größe ☃".encode())
    assert read_pickle(code + b".").value == "Größe ☃" == pickle.loads(code + b".", encoding="utf-8")
    data = with_extra(code)
    assert hnloader.load(io.BytesIO(data)).metadata["x"] == "Größe ☃"
    if opcode == "SHORT_BINSTRING":  # the only one of them that torch reads with weights_only
        assert_as_torch(data)


@pytest.mark.parametrize("opcode", OLD_TEXTS)
@pytest.mark.parametrize("data", [b"Gr\xf6\xdfe", b"\xed\xa0\x80", b"\xff"])
def test_other_python_2_text_is_refused_and_later_calls_are_named(opcode: str, data: bytes) -> None:
    code = OLD_TEXTS[opcode](data)
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(code + b".", encoding="utf-8")
    assert_refused(with_extra(code), CorruptFileError, "UTF-8")
    assert_refused(with_extra(code + b"0cos\nsystem\nN\x85R"), UnsafeFileError, "os.system")


def test_too_many_opcodes_are_refused() -> None:
    refuse_pickle(b"N0" * pickles.MAX_OPCODES, "opcodes")


@pytest.mark.parametrize(
    "keys",
    [
        [(k * ((1 << 61) - 1)) for k in range(1 << 60, (1 << 60) + 2000)],
        [tuple(-1 - ((n >> bit) & 1) for bit in range(11)) for n in range(2000)],
    ],
    ids=["integers", "tuples"],
)
def test_keys_of_equal_hashes_are_refused(keys: list[object]) -> None:
    """They make each insertion look at all before it: quadratic time."""
    assert len({hash(key) for key in keys}) < 10
    for content in (dict.fromkeys(keys), set(keys), frozenset(keys)):
        for protocol in (2, 4):
            refuse_pickle(pickle.dumps(content, protocol), type(keys[0]).__name__)


@pytest.mark.parametrize(
    "made", [b"ccollections\nOrderedDict\n)\x81", b"(ccollections\nOrderedDict\no"], ids=["NEWOBJ", "OBJ"]
)
def test_empty_ordered_dict_can_be_an_object(made: bytes) -> None:
    found = read_pickle(b"\x80\x02" + made + b".")
    assert type(found.value) is OrderedDict and not found.value and not found.refused
    assert read_pickle(
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85\x81."
    ).refused  # its arguments would be passed over


def test_invalid_torch_size_is_damage() -> None:
    def size(arguments: bytes) -> bytes:
        return b"\x80\x02ctorch\nSize\n" + arguments + b"R."

    assert read_pickle(size(b")")).value == ()
    assert read_pickle(size(b"K\x02K\x03\x86\x85")).value == (2, 3)
    for wrong in (
        b"K\x02\x85",
        b")K\x02\x86",
        b"X\x01\x00\x00\x00a\x85\x85",
        b"\x88\x85\x85",
        b"X\x01\x00\x00\x00a\x85",
    ):
        with raises(MalformedPickleError, "torch.Size"):
            read_pickle(size(wrong))
