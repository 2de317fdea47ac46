"""Make streams of opcodes in any order, with valid and invalid arguments, before imports and calls."""

from __future__ import annotations

import struct

from lab.fuzz.choices import Choices

_NAMES = (
    "os",
    "system",
    "builtins",
    "__builtin__",
    "exec",
    "collections",
    "OrderedDict",
    "torch._utils",
    "_rebuild_tensor_v2",
    "pytorch_lightning.callbacks.model_checkpoint",
    "ModelCheckpoint",
    "a b",
    "",
    "é",
    "a.b",
    "x" * 300,
)
_ZEROS = ("1\0", "1\0x", "\0x", " 1\0 ", "1\x1c", "1\x0c", "+_", "_1")
_NUMBERS = (
    "0",
    "1",
    "-1",
    "010",
    "08",
    "0x10",
    "0b1",
    "0o7",
    "1_0",
    " 1",
    "1 ",
    "+1",
    "1L",
    "00",
    "01",
    "",
    "9" * 25,
    *_ZEROS,
)
_FLOATS = ("1.5", "1", "nan", "-inf", "1e5", "1_0.5", " 1.5", "1.5 ", "x", "", *_ZEROS)
_STRINGS = ("'a'", '"os"', "'a", "a", "''", "'\\x6fs'", "'\\x'", " 'a' ", "'a' ")
_PLAIN = b"N\x88\x89]})\x8f(((.0122lt\x85\x86\x87deaus\x90\x91RRRbbo\x81\x92\x93\x93QQ\x94\x97\x98"


def stream(choices: Choices) -> bytes:
    """Make one pickle or several in a row."""
    data = choices.pick((b"\x80\x02", b"", b"\x80\x04", b"\x80\x00", b"\x80\x06"))
    for _ in range(1 + choices.below(40)):
        data += _opcode(choices)
    return data + choices.pick((b".", b"", b"\xff", b"0N.", b"..", b".\x80\x02N."))


def _opcode(choices: Choices) -> bytes:
    kind = choices.below(10)
    if kind < 4:
        return _PLAIN[(at := choices.below(len(_PLAIN))) : at + 1]
    if kind == 4:
        return choices.pick((b"c", b"c", b"i")) + _line(choices.pick(_NAMES)) + _line(choices.pick(_NAMES))
    if kind == 5:
        return _counted(choices, choices.pick(_NAMES).encode())
    if kind == 6:
        return choices.pick(
            (
                b"I" + _line(choices.pick(_NUMBERS)),
                b"L" + _line(choices.pick(_NUMBERS)),
                b"F" + _line(choices.pick(_FLOATS)),
                b"S" + _line(choices.pick(_STRINGS)),
                b"V" + _line(choices.pick((*_NAMES, "\\u006fs", "\\u00"))),
                b"P" + _line(choices.pick(_NAMES)),
            )
        )
    if kind == 7:
        return choices.pick((b"p", b"g")) + _line(choices.pick(_NUMBERS))
    if kind == 8:
        number = choices.below(4)
        return choices.pick(
            (
                bytes([choices.pick(b"qh\x82K\x80"), number]),
                choices.pick((b"r", b"j", b"\x84", b"J")) + struct.pack("<I", number),
                choices.pick((b"M", b"\x83")) + struct.pack("<H", number),
                b"G" + struct.pack(">d", 1.5),
                b"\x95" + struct.pack("<Q", choices.pick((0, 3, 1 << 40))),
                b"\x8a" + bytes([number]) + b"\x01" * number,
                b"\x8b" + struct.pack("<i", number - 1) + b"\x01" * max(number - 1, 0),
            )
        )
    return choices.raw(1) or b"N"


def _counted(choices: Choices, data: bytes) -> bytes:
    size = len(data) + choices.pick((0, 0, 0, 0, 0, 1, 300))
    code, form = choices.pick(
        ((b"X", "<I"), (b"\x8c", "B"), (b"\x8d", "<Q"), (b"T", "<i"), (b"U", "B"), (b"B", "<I"), (b"C", "B"))
    )
    return code + struct.pack(form, size & 0xFF if form == "B" else size) + data


def _line(text: str) -> bytes:
    return text.encode() + b"\n"
