"""A fuzzer's bytes as a source of decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Decisions taken from bytes, one after the other; when they are used up, every decision is the first.

    So any bytes give some file, a change of a byte changes one decision, and short inputs give plain files.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1."""
        size = 1 if limit <= 1 << 8 else 2 if limit <= 1 << 16 else 8
        return int.from_bytes(self.raw(size).ljust(size, b"\0"), "little") % limit

    def pick(self, items: Sequence[T]) -> T:
        """One of them."""
        return items[self.below(len(items))]

    def rarely(self, one_in: int = 16) -> bool:
        """True once in so many times, and never when the bytes are used up."""
        return self.below(256) * one_in >= 256 * (one_in - 1)

    def raw(self, size: int) -> bytes:
        """Up to so many of the bytes themselves."""
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def number(self) -> int:
        """A whole number, most of them small, some at the edges of what programs count with."""
        if self.rarely(4):
            edge = self.pick((0, 7, 8, 15, 16, 31, 32, 48, 63, 64, 65, 255))
            return (1 << edge) + self.below(3) - 1
        return self.below(20) - self.pick((0, 0, 0, 8))

    def text(self) -> str:
        """Text, most of it short and plain."""
        if self.rarely(6):
            return self.raw(self.below(12)).decode("latin-1")
        if self.rarely(12):
            return self.pick(ODD_TEXTS)
        return self.pick(("a", "name", "x1", "weight", "linear", "ink"))


# Texts with which programs that read files have had trouble.
ODD_TEXTS = (
    "",
    "\x00",
    "\ud800",
    "é\u202e\u200b",
    "\x1b[31m",
    "../../etc/passwd",
    "a" * 5000,
    "__class__",
    "__proto__",
    "os.system",
    "\u0661\u0662",
    "²",
    "0" * 400,
    "1e999",
    "nan",
    "<script>",
    "\r\n",
    "%s%n",
)
