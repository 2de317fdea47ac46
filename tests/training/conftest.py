from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of six images of two shapes, some with captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(6):
        size = (40, 40) if index % 2 else (64, 32)
        values = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")
        if index < 3:
            (folder / f"{index}.txt").write_text(f"a thing number {'abc'[index]}")
    return folder
