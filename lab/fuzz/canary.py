"""The function that hostile files name: `calls` shows if reading any of them called it."""

from __future__ import annotations

calls = 0


def sing(*arguments: object) -> str:
    """Count the call."""
    global calls
    calls += 1
    return "sung"
