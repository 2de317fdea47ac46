"""A folder of pictures: what is found in it, what is wrong with it, and what the model sees of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hnloader.training import ConfigError, read_config
from hnloader.training.dataset import Dataset, DatasetError, caption_of, read_folder
from hnloader.training.images import Sample, bucket, moved, prepare


def read(folder: Path, **data: object) -> Dataset:
    return read_folder(folder, read_config(None, {f"data.{key}": value for key, value in data.items()}).data)


def captions(dataset: Dataset, **data: object) -> dict[str, str]:
    config = read_config(None, {f"data.{key}": value for key, value in data.items()}).data
    return {picture.path.name: caption_of(picture, config, "style", 0) for picture in dataset.pictures}


def picture(path: Path, size: tuple[int, int] = (64, 64), color: object = "red", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


# -- what is wrong


def test_bad_files_are_left_out_and_named(pictures: Path) -> None:
    (pictures / "broken.png").write_bytes((pictures / "0.png").read_bytes()[:200])
    (pictures / "text.jpg").write_text("not a picture")
    picture(pictures / "tiny.png", (20, 200))
    (pictures / "copy.png").write_bytes((pictures / "1.png").read_bytes())
    (pictures / "notes.md").write_text("ignored")
    (pictures / ".hidden.png").write_text("ignored")
    found = read(pictures)
    assert [each.path.name for each in found.pictures] == [f"{index}.png" for index in range(6)]
    fatal = {problem.path.name: problem.what for problem in found.problems if problem.fatal}
    assert set(fatal) == {"broken.png", "text.jpg", "tiny.png", "copy.png"}
    assert "cannot be read" in fatal["broken.png"]
    assert "20 x 200" in fatal["tiny.png"]
    assert "the same picture as 1.png" in fatal["copy.png"]


def test_of_two_same_pictures_the_one_with_a_caption_is_used(pictures: Path) -> None:
    (pictures / "0 copy.png").write_bytes((pictures / "0.png").read_bytes())
    (pictures / "0.txt").write_text("a square of its own")
    found = read(pictures)
    assert [each.caption for each in found.pictures if each.path.name.startswith("0")] == ["a square of its own"]
    assert [problem.path.name for problem in found.problems if problem.fatal] == ["0 copy.png"]


def test_animated_pictures_are_noted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = read(tmp_path)
    assert len(found.pictures) == 1
    assert any("animated (2 frames)" in problem.what and not problem.fatal for problem in found.problems)


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "broken"])
def test_a_folder_with_nothing_to_train_on(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind == "broken":
        (folder / "a.png").write_text("x")
    words = {"missing": "does not exist", "file": "is not a folder", "empty": "has no pictures", "broken": "none of"}
    with pytest.raises(DatasetError, match=words[kind]):
        read(folder)


def test_a_single_picture_is_noted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert any("only picture" in problem.what for problem in read(tmp_path).problems)


# -- captions


def test_captions_from_sidecars_then_metadata_then_templates(pictures: Path) -> None:
    lines = [{"file_name": "0.png", "text": "not this"}, {"file_name": "4.png", "text": "from metadata"}]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = captions(read(pictures, templates=["{name}: {filename}"]), templates=["{name}: {filename}"])
    assert found["0.png"] == "a thing number a"
    assert found["4.png"] == "from metadata"
    assert found["5.png"] == "style: 5"


def test_captions_from_file_names_and_a_prefix(tmp_path: Path) -> None:
    picture(tmp_path / "001-red_house+at-night.png")
    assert captions(read(tmp_path, captions="filename"), prefix="art,") == {
        "001-red_house+at-night.png": "art, red house at night"
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [("metadata.csv", "file_name,text\n0.png,hello\n"), ("captions.json", '{"0.png": "hello"}')],
)
def test_other_kinds_of_metadata(name: str, text: str, pictures: Path) -> None:
    (pictures / name).write_text(text)
    found = read(pictures, captions="metadata")
    assert captions(found)["0.png"] == "hello"
    assert sum("no caption" in problem.what for problem in found.problems) == 5


def test_metadata_that_is_asked_for_must_be_there(pictures: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of metadata.jsonl"):
        read(pictures, captions="metadata")
    (pictures / "metadata.jsonl").write_text('{"file": 1}')
    with pytest.raises(DatasetError, match=r"metadata.jsonl cannot be read"):
        read(pictures, captions="metadata")


# -- what the model sees


@settings(deadline=None)
@given(
    st.tuples(st.integers(32, 9000), st.integers(32, 9000)),
    st.sampled_from([64, 256, 512, 768]),
    st.sampled_from([8, 16, 64]),
)
def test_buckets_are_on_the_grid_and_not_larger_than_asked(size: tuple[int, int], side: int, grain: int) -> None:
    width, height = bucket(size, side, grain)
    assert width % grain == 0
    assert height % grain == 0
    assert width * height <= side * side
    if grain * 8 <= side and 0.5 <= size[0] / size[1] <= 2:
        assert 0.7 < (width / height) / (size[0] / size[1]) < 1.4


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 0, 64, 16))  # blue above red
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned right by a quarter
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    found = read(tmp_path)
    assert found.pictures[0].size == (32, 64)
    pixels = prepare(found.pictures[0], read_config(None, {}).data, 64, 8).pixels
    assert pixels.shape[1] > pixels.shape[2]
    left, right = pixels[:, :, 0].mean(dim=1), pixels[:, :, -1].mean(dim=1)
    assert left[0] > 0.8
    assert right[2] > 0.8


@pytest.mark.parametrize(("background", "value"), [("white", 1.0), ("black", -1.0), ("gray", -1 / 255)])
def test_transparent_parts_show_the_background(background: str, value: float, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", color=(255, 0, 0, 0), mode="RGBA")
    found = read(tmp_path, background=background)
    config = read_config(None, {"data.background": background}).data
    assert torch.allclose(prepare(found.pictures[0], config, 64, 8).pixels, torch.tensor(value), atol=0.01)


def test_a_picture_moves_with_its_mask_and_repeats_the_edge_that_comes_free() -> None:
    pixels = torch.arange(12.0).reshape(1, 3, 4).expand(3, 3, 4)
    right_and_up = moved(Sample(pixels, pixels[:1], (4, 3), (0, 0)), 1, -2)
    assert right_and_up.pixels[1].tolist() == [[8, 8, 9, 10]] * 3
    assert right_and_up.mask is not None
    assert right_and_up.mask[0].tolist() == right_and_up.pixels[0].tolist()
    assert moved(Sample(pixels, None, (4, 3), (0, 0)), -1, 1).pixels[0].tolist() == [
        [1, 2, 3, 3],
        [1, 2, 3, 3],
        [5, 6, 7, 7],
    ]


def test_masks_come_from_files_or_transparency(tmp_path: Path) -> None:
    values = np.zeros((64, 64, 4), np.uint8)
    values[:, :32, 3] = 255
    Image.fromarray(values, "RGBA").save(tmp_path / "alpha.png")
    picture(tmp_path / "file.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 32, 64, 64))
    mask.save(tmp_path / "file.mask.png")
    found = {each.path.name: each for each in read(tmp_path, masks=True).pictures}
    assert set(found) == {"alpha.png", "file.png"}
    config = read_config(None, {"data.masks": True}).data
    alpha, file = (prepare(found[name], config, 64, 8).mask for name in ("alpha.png", "file.png"))
    assert alpha is not None
    assert file is not None
    assert (alpha[0, :, 5].min(), alpha[0, :, -5].max()) == (1, 0)
    assert (file[0, -5].min(), file[0, 5].max()) == (1, 0)
    assert prepare(found["file.png"], read_config(None, {}).data, 64, 8).mask is None
