"""Numbers of random examples: few in `make test`, many with HNLOADER_LONG=1."""

from __future__ import annotations

import os


def examples(few: int, many: int) -> int:
    """Return how many examples a test draws."""
    return many if os.environ.get("HNLOADER_LONG") else few
