"""Checks of values in JSON files that other programs may have changed."""

from __future__ import annotations


def is_count(value: object) -> bool:
    """Return True for a whole number from 0 to 63 bits."""
    return type(value) is int and 0 <= value < 1 << 63


def is_number(value: object) -> bool:
    """Return True for a float, or a whole number that fits into one."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def is_history(value: object) -> bool:
    """Return True for a list of validations, each with its step."""
    return isinstance(value, list) and all(
        isinstance(entry, dict) and "step" in entry and all(map(is_number, entry.values())) for entry in value
    )
