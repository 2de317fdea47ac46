from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.standins.webui import Webui, running


@pytest.fixture(params=["a1111", "forge"])
def webui(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Webui]:
    """A stand-in host, not started yet."""
    with running(tmp_path / "webui", forge=request.param == "forge") as webui:
        yield webui
