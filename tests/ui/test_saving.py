"""Numbered images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hnloader.ui import saving
from hnloader.ui.saving import next_number, save_numbered


def image(color: str = "red") -> Image.Image:
    return Image.new("RGB", (8, 8), color)


def test_numbers_images_by_prefix_and_keeps_their_parameters(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    first = save_numbered(image(), folder, "compare-", 3, "Prompt: ä")
    second = save_numbered(image(), folder, "compare-", 3, "")
    assert [first.name, second.name] == ["compare-00001-3.png", "compare-00002-3.png"]
    assert next_number(folder, "") == 1
    with Image.open(first) as saved:
        assert saved.info["parameters"] == "Prompt: ä"
    with Image.open(second) as saved:
        assert "parameters" not in saved.info


def test_skips_a_number_that_another_program_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "next_number", lambda folder, prefix: 1)
    paths = [save_numbered(image(color), tmp_path, "", 3, "") for color in ("red", "blue")]
    assert [path.name for path in paths] == ["00001-3.png", "00002-3.png"]
    with Image.open(paths[0]) as saved:
        assert saved.getpixel((0, 0)) == (255, 0, 0)
