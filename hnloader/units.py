"""Write sizes, large counts, and counts of things."""

from __future__ import annotations

__all__ = ["count_text", "counted", "size_text"]


def size_text(size: float) -> str:
    """Return a number of bytes as text: 512 B, 1.2 kB, 87.1 MB."""
    return _scaled(size, ("B", "kB", "MB", "GB"))


def count_text(count: float) -> str:
    """Return a count as text: 640, 1.2 M, 678 G."""
    return _scaled(count, ("", "k", "M", "G", "T")).strip()


def counted(count: int, noun: str) -> str:
    """Return a count of things as text: 1 step, 1,200 steps."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _scaled(number: float, units: tuple[str, ...]) -> str:
    for unit in units:
        if number < 999.5 or unit == units[-1]:
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == units[0] or number >= 99.95 else f"{number:.1f} {unit}"
