"""Labeled grids."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hnloader.grids import labeled_grid

RED, BLUE = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))


def count(image: Image.Image, color: tuple[int, int, int]) -> int:
    return sum(number for number, found in image.getcolors(image.width * image.height) or [] if found == color)


def test_every_image_is_shown_enlarged() -> None:
    grid = labeled_grid([[RED, BLUE], [BLUE, BLUE]], columns=["0", "1"], rows=["a", "b"])
    assert count(grid, (255, 0, 0)) == 192 * 192
    assert count(grid, (0, 0, 255)) == 3 * 192 * 192


def test_large_images_keep_their_size() -> None:
    grid = labeled_grid([[RED.resize((512, 256))]], columns=["x"], rows=[""])
    assert count(grid, (255, 0, 0)) == 512 * 256


def test_labels_title_and_groups_are_drawn() -> None:
    bare = labeled_grid([[RED, RED]], columns=["", ""], rows=[""])
    full = labeled_grid(
        [[RED, RED]], columns=["0", "1"], rows=["a long row label"], title="Title", caption="more", groups=[("g", 2)]
    )
    assert full.height > bare.height
    assert full.width > bare.width
    assert count(full, (34, 34, 40)) > 50


def test_a_wrong_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="1 column labels for 1 rows of 2"):
        labeled_grid([[RED, BLUE]], columns=["only one"], rows=["a"])
    with pytest.raises(ValueError, match="empty"):
        labeled_grid([], columns=[], rows=[])
    with pytest.raises(ValueError, match="1 of 2"):
        labeled_grid([[RED, BLUE]], columns=["0", "1"], rows=["a"], groups=[("g", 1)])


def test_an_older_pillow_draws_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Pillow 10.1 the default font had one size."""
    monkeypatch.setattr("PIL.ImageFont.load_default", lambda: pytest.fail("the font of one size was taken"))
    image = Image.new("RGB", (192, 192), "white")
    grid = labeled_grid([[image]], columns=["strength 0.5"], rows=["a red circle"])
    blank = labeled_grid([[image]], columns=[" "], rows=[" "])
    dark = [sum(value < 128 for value in image.convert("L").tobytes()) for image in (grid, blank)]
    assert dark[0] > dark[1] + 100


def test_frames_fit_images_and_empty_places_have_none() -> None:
    high, wide = Image.new("RGB", (192, 384), "red"), Image.new("RGB", (384, 192), "red")
    grid = np.asarray(labeled_grid([[high, wide], [high, None]], columns=["", ""], rows=["", ""], cell=384))
    line = np.all(grid == (222, 222, 218), axis=-1)
    red = np.all(grid == (255, 0, 0), axis=-1)
    # Each edge of an image has a frame outside, and other places have none.
    around = np.zeros_like(red)
    for shift in [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]:
        around |= np.roll(red, shift, (0, 1))
    assert red.sum() == 3 * 192 * 384
    assert (line == (around & ~red)).all()
