"""Checks that run by themselves, one line each: for what no test can have at hand (a webui, a GPU)."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable


def outcome(name: str, check: Callable[[], str]) -> bool:
    """Run one check and print its line; whether it was good."""
    begun = time.monotonic()
    try:
        said, good = check(), True
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = (
            "" if isinstance(error, AssertionError) else f"{type(error).__name__} at {where.filename}:{where.lineno}: "
        )
        said, good = kind + (str(error) or str(where.line)), False
    print(f"{'ok    ' if good else 'FAILED'} {name:<20} {time.monotonic() - begun:5.1f} s  {said}", flush=True)
    return good
