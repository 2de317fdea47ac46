"""Turn a fuzzer's bytes into decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
LONGEST = 2048  # bytes of an input; the files made from them have about ten kilobytes


class Choices:
    """Decisions taken from bytes, one after the other; after the last byte, every decision is the first choice.

    Any bytes make some file, a changed byte changes one decision, and short inputs make plain files.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, limit: int) -> int:
        """Return a number from 0 to `limit` - 1."""
        size = 1 if limit <= 1 << 8 else 2 if limit <= 1 << 16 else 8
        return int.from_bytes(self.raw(size).ljust(size, b"\0"), "little") % limit

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.below(len(items))]

    def rarely(self, one_in: int = 16) -> bool:
        """Return True once in `one_in` calls on average, and never after the last byte."""
        return self.below(256) * one_in >= 256 * (one_in - 1)

    def raw(self, size: int) -> bytes:
        """Return up to `size` of the bytes themselves."""
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def number(self) -> int:
        """Return an integer: most are small, some are at the limits of integer types."""
        if self.rarely(4):
            edge = self.pick((0, 7, 8, 15, 16, 31, 32, 48, 63, 64, 65, 255))
            return (1 << edge) + self.below(3) - 1
        return self.below(20) - self.pick((0, 0, 0, 8))

    def text(self) -> str:
        """Return a text; most are short and plain."""
        if self.rarely(6):
            return self.raw(self.below(12)).decode("latin-1")
        if self.rarely(12):
            return self.pick(ODD_TEXTS)
        return self.pick(("a", "name", "x1", "weight", "linear", "ink"))


# Texts that have caused trouble in programs that read files.
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
