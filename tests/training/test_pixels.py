"""Images at their training size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hnloader.training import read_config
from hnloader.training.pixels import Sample, bucket, load_sample
from tests.support.trainings import read, save_image


@settings(deadline=None)
@given(
    st.tuples(st.integers(32, 9000), st.integers(32, 9000)),
    st.sampled_from([64, 256, 512, 768]),
    st.sampled_from([8, 16, 64]),
)
def test_buckets_are_multiples_within_the_area(size: tuple[int, int], side: int, grain: int) -> None:
    width, height = bucket(size, side, grain)
    assert width % grain == 0
    assert height % grain == 0
    assert width * height <= side * side
    if grain * 8 <= side and 0.5 <= size[0] / size[1] <= 2:
        assert 0.7 < (width / height) / (size[0] / size[1]) < 1.4


def test_exif_orientation(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 0, 64, 16))  # blue above red
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned right by a quarter
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    found = read(tmp_path)
    assert found.images[0].size == (32, 64)
    pixels = load_sample(found.images[0], read_config(None, {}).data, 64, 8).pixels
    assert pixels.shape[1] > pixels.shape[2]
    left, right = pixels[:, :, 0].mean(dim=1), pixels[:, :, -1].mean(dim=1)
    assert left[0] > 0.8
    assert right[2] > 0.8


@pytest.mark.parametrize(("background", "value"), [("white", 1.0), ("black", -1.0), ("gray", -1 / 255)])
def test_transparent_parts_show_the_background(background: str, value: float, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", color=(255, 0, 0, 0), mode="RGBA")
    found = read(tmp_path, background=background)
    config = read_config(None, {"data.background": background}).data
    assert torch.allclose(load_sample(found.images[0], config, 64, 8).pixels, torch.tensor(value), atol=0.01)


def test_a_shift_repeats_the_edge() -> None:
    pixels = torch.arange(12.0).reshape(1, 3, 4).expand(3, 3, 4)
    right_and_up = Sample(pixels, pixels[:1], (4, 3), (0, 0)).shifted(1, -2)
    assert right_and_up.pixels[1].tolist() == [[8, 8, 9, 10]] * 3
    assert right_and_up.mask is not None
    assert right_and_up.mask[0].tolist() == right_and_up.pixels[0].tolist()
    assert Sample(pixels, None, (4, 3), (0, 0)).shifted(-1, 1).pixels[0].tolist() == [
        [1, 2, 3, 3],
        [1, 2, 3, 3],
        [5, 6, 7, 7],
    ]


def test_masks_come_from_files_or_transparency(tmp_path: Path) -> None:
    values = np.zeros((64, 64, 4), np.uint8)
    values[:, :32, 3] = 255
    Image.fromarray(values, "RGBA").save(tmp_path / "alpha.png")
    save_image(tmp_path / "file.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 32, 64, 64))
    mask.save(tmp_path / "file.mask.png")
    found = {each.path.name: each for each in read(tmp_path, masks=True).images}
    assert set(found) == {"alpha.png", "file.png"}
    config = read_config(None, {"data.masks": True}).data
    alpha, file = (load_sample(found[name], config, 64, 8).mask for name in ("alpha.png", "file.png"))
    assert alpha is not None
    assert file is not None
    assert (alpha[0, :, 5].min(), alpha[0, :, -5].max()) == (1, 0)
    assert (file[0, -5].min(), file[0, 5].max()) == (1, 0)
    assert load_sample(found["file.png"], read_config(None, {}).data, 64, 8).mask is None
