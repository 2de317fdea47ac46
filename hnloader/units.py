"""Write sizes and large counts in powers of 1000."""

from __future__ import annotations

__all__ = ["count_text", "size_text"]


def size_text(size: float) -> str:
    """Return a number of bytes as text: 512 B, 1.2 kB, 87.1 MB."""
    return _scaled(size, ("B", "kB", "MB", "GB"))


def count_text(count: float) -> str:
    """Return a count as text: 640, 1.2 M, 678 G."""
    return _scaled(count, ("", "k", "M", "G", "T")).strip()


def _scaled(number: float, units: tuple[str, ...]) -> str:
    for unit in units:
        if number < 999.5 or unit == units[-1]:
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == units[0] or number >= 99.95 else f"{number:.1f} {unit}"
