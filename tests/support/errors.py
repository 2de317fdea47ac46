"""Errors by their type and the facts in their message; the sentence around the facts may change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def raises(kind: type[BaseException], *facts: object) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect this kind of error, with each fact (a file, a key, a shape, a number) in its message."""
    with pytest.raises(kind) as caught:
        yield caught
    missing = [fact for fact in map(str, facts) if fact not in str(caught.value)]
    assert not missing, f"{missing} are missing in: {caught.value}"
