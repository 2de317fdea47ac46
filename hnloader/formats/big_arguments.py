"""Shorten a pickle that holds the numbers of tensors, so that `pickles` reads it without all of it in memory.

torch 1.12 and 1.13 wrote tensors of Apple's GPU into the pickle, as text. `shortened` copies the pickle and replaces
each long text and byte string by the placeholder 0xff, which is not an opcode.
"""

from __future__ import annotations

import struct

from hnloader.formats.pickles import MAX_OPCODES, MAX_PICKLE_SIZE, Blob, MalformedPickleError
from hnloader.formats.source import Source

__all__ = ["shortened"]

PLACEHOLDER = b"\xff"
_LONG = 1 << 16  # bytes of the shortest argument that stays in the file
_WINDOW = 1 << 16
# Opcodes with an argument of a fixed size, of a stated size, and of lines. Others lack arguments.
_FIXED = {b: n for n, codes in ((1, b"Kqh\x80\x82"), (2, b"M\x83"), (4, b"Jrj\x84"), (8, b"G\x95")) for b in codes}
_COUNTED = {b: n for n, codes in ((1, b"UC\x8c\x8a"), (4, b"TXB\x8b"), (8, b"\x8d\x8e\x96")) for b in codes}
_LINES = {b: n for n, codes in ((1, b"ILFSVpgP"), (2, b"ci")) for b in codes}
_TEXTS = b"X\x8d"
_BYTES = b"B\x8e\x96"
_STOP = ord(".")


class _Window:
    """A file with the bytes around one offset in memory."""

    def __init__(self, source: Source, end: int) -> None:
        self.source, self.end = source, end
        self.start, self.data = 0, b""

    def at(self, offset: int, size: int) -> bytes:
        if not self.start <= offset <= offset + size <= self.start + len(self.data):
            if offset + size > self.end:
                raise MalformedPickleError("It is cut off.")
            self.start = offset
            self.data = self.source.read(offset, min(max(size, _WINDOW), self.end - offset))
        return self.data[offset - self.start : offset - self.start + size]

    def line_end(self, offset: int) -> int:
        while True:
            self.at(offset, 1)
            found = self.data.find(b"\n", offset - self.start)
            if found >= 0:
                return self.start + found + 1
            offset = self.start + len(self.data)


def shortened(source: Source, start: int, end: int) -> tuple[bytes, list[Blob], int]:
    """Copy the pickle that begins at `start` of a file without its long texts and byte strings.

    Returns:
        The copy, what it omits, and the offset after the pickle in the file.

    Raises:
        MalformedPickleError: It is damaged or above a limit.
    """
    window = _Window(source, end)
    kept: list[bytes] = []
    blobs: list[Blob] = []
    at, kept_size = start, 0
    for _ in range(MAX_OPCODES):
        code = window.at(at, 1)[0]
        size = _argument_size(window, at, code)
        if code in _COUNTED and size > _LONG and code in _TEXTS + _BYTES:
            prefix = _COUNTED[code]
            if at + 1 + size > end:
                raise MalformedPickleError("It is cut off.")
            blobs.append(Blob(at + 1 + prefix, size - prefix, code in _TEXTS))
            kept.append(PLACEHOLDER)
        else:
            if code == PLACEHOLDER[0]:
                raise MalformedPickleError(f"Byte {at} is 0xff, which is not a pickle opcode.")
            kept_size += size + 1
            if kept_size > MAX_PICKLE_SIZE:
                raise MalformedPickleError(f"It is larger than {MAX_PICKLE_SIZE >> 20} MiB without its long texts.")
            kept.append(window.at(at, 1 + size))
        at += 1 + size
        if code == _STOP:
            return b"".join(kept), blobs, at
    raise MalformedPickleError(f"It has more than {MAX_OPCODES:,} opcodes.")


def _argument_size(window: _Window, at: int, code: int) -> int:
    """Return the size of the argument of the opcode at `at`, including the size that it states."""
    if code in _FIXED:
        return _FIXED[code]
    if code in _COUNTED:
        prefix = _COUNTED[code]
        form = {1: "<B", 4: "<i" if code in b"T\x8b" else "<I", 8: "<Q"}[prefix]
        (size,) = struct.unpack(form, window.at(at + 1, prefix))
        if size < 0:
            raise MalformedPickleError(f"A size at byte {at} is negative.")
        return prefix + int(size)
    end = at + 1
    for _ in range(_LINES.get(code, 0)):
        end = window.line_end(end)
    return end - at - 1
