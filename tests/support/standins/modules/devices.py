"""Where the stand-in host computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def autocast() -> Iterator[None]:
    yield
