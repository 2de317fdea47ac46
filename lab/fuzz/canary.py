"""What hostile files name: `calls` tells whether any of them reached it."""

from __future__ import annotations

calls = 0


def sing(*arguments: object) -> str:
    """Count the call."""
    global calls
    calls += 1
    return "sung"
