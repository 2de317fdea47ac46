from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import GOLDENS
from tests.support.standins.comfyui_host import Host, running


@pytest.fixture
def comfyui(tmp_path: Path) -> Iterator[Host]:
    """A stand-in of ComfyUI with the golden files, `styles/ink.pt` among them."""
    folder = tmp_path / "models" / "hypernetworks"
    (folder / "styles").mkdir(parents=True)
    for file in (*GOLDENS.glob("*.pt"), *GOLDENS.glob("*.hns")):
        shutil.copy(file, folder / file.name)
    shutil.copy(GOLDENS / "relu_121.pt", folder / "styles" / "ink.pt")
    with running(folder) as host:
        yield host
