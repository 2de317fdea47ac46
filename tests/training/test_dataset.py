"""A folder of images: what is found in it, what is wrong with it, and what the model sees of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hnloader.errors import ConfigError, DatasetError
from hnloader.training import read_config
from hnloader.training.dataset import (
    Dataset,
    caption_of,
    count_tokens,
    count_with_word,
    note_long_captions,
    read_folder,
    trained_caption,
)
from hnloader.training.pixels import Sample, bucket, moved, prepare


def read(folder: Path, **data: object) -> Dataset:
    return read_folder(folder, read_config(None, {f"data.{key}": value for key, value in data.items()}).data)


def captions(dataset: Dataset, **data: object) -> dict[str, str]:
    config = read_config(None, {f"data.{key}": value for key, value in data.items()}).data
    return {image.path.name: caption_of(image, config, "style", 0) for image in dataset.images}


def save_image(path: Path, size: tuple[int, int] = (64, 64), color: object = "red", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


# -- what is wrong


def test_bad_files_are_left_out_and_named(images: Path) -> None:
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:200])
    (images / "text.jpg").write_text("not an image")
    save_image(images / "tiny.png", (20, 200))
    (images / "copy.png").write_bytes((images / "1.png").read_bytes())
    (images / "notes.md").write_text("ignored")
    (images / ".hidden.png").write_text("ignored")
    found = read(images)
    assert [each.path.name for each in found.images] == [f"{index}.png" for index in range(6)]
    fatal = {problem.path.name: problem.what for problem in found.problems if problem.fatal}
    assert set(fatal) == {"broken.png", "text.jpg", "tiny.png", "copy.png"}
    assert "cannot be read" in fatal["broken.png"]
    assert "20 x 200" in fatal["tiny.png"]
    assert "the same image as 1.png" in fatal["copy.png"]


def test_of_two_same_images_the_one_with_a_caption_is_used(images: Path) -> None:
    (images / "0 copy.png").write_bytes((images / "0.png").read_bytes())
    (images / "0.txt").write_text("a square of its own")
    found = read(images)
    assert [each.caption for each in found.images if each.path.name.startswith("0")] == ["a square of its own"]
    assert [problem.path.name for problem in found.problems if problem.fatal] == ["0 copy.png"]


def test_animated_images_are_noted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = read(tmp_path)
    assert len(found.images) == 1
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
    words = {"missing": "does not exist", "file": "is not a folder", "empty": "has no images", "broken": "none of"}
    with pytest.raises(DatasetError, match=words[kind]):
        read(folder)


def test_a_single_image_is_noted(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    assert any("only image" in problem.what for problem in read(tmp_path).problems)


# -- captions


def test_captions_from_sidecars_then_metadata_then_templates(images: Path) -> None:
    lines = [{"file_name": "0.png", "text": "not this"}, {"file_name": "4.png", "text": "from metadata"}]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = captions(read(images, templates=["{name}: {filename}"]), templates=["{name}: {filename}"])
    assert found["0.png"] == "a thing number a"
    assert found["4.png"] == "from metadata"
    assert found["5.png"] == "style: 5"


def test_captions_from_file_names_and_a_prefix(tmp_path: Path) -> None:
    save_image(tmp_path / "001-red_house+at-night.png")
    assert captions(read(tmp_path, captions="filename"), prefix="art,") == {
        "001-red_house+at-night.png": "art, red house at night"
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [("metadata.csv", "file_name,text\n0.png,hello\n"), ("captions.json", '{"0.png": "hello"}')],
)
def test_other_kinds_of_metadata(name: str, text: str, images: Path) -> None:
    (images / name).write_text(text)
    found = read(images, captions="metadata")
    assert captions(found)["0.png"] == "hello"
    assert sum("no caption" in problem.what for problem in found.problems) == 5


@pytest.mark.parametrize("name", ["captions.json", "metadata.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        *("[]", "null", "3", "1.5", '"a"', "true", '["0.png"]', '[{"file_name": "0.png", "text": "a"}]'),
        *('{"0.png": null}', '{"0.png": 3}', '{"0.png": ["a"]}', '{"0.png": {"caption": "a"}}', "{", "[" * 100_000),
        *('{"file_name": "0.png"}', '{"file_name": "0.png", "text": null}', '{"file_name": 3, "text": "a"}', "\x00"),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "metadata"])
def test_metadata_of_any_other_shape(name: str, text: str, asked: str, images: Path) -> None:
    (images / name).write_text(text)
    if name == "captions.json" and text == '{"file_name": "0.png"}':
        return  # a caption of an image of that name
    with pytest.raises(DatasetError, match=rf"{name} cannot be read .*file_name and text were expected"):
        read(images, captions=asked)


@pytest.mark.parametrize(
    "text", ["0.png,a cat, sitting\n", "\x00", "file_name\n0.png\n", "name,text\n0.png,a\n", "x" * 200_000]
)
def test_a_table_of_any_other_shape(text: str, images: Path) -> None:
    begins = text if text.startswith(("file", "name", "x", "\x00")) else f"file_name,text\n{text}"
    (images / "metadata.csv").write_text(begins if "\n" in begins else f"{begins},text\n0.png,a\n")
    with pytest.raises(DatasetError, match=r"metadata.csv cannot be read"):
        read(images)


TEXT = "ein grünes Haus, 一座房子"
READ = {
    "UTF-8": TEXT.encode(),
    "UTF-8 with a mark": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16 big": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
}
NOT_READ = {
    "GBK": "一座房子".encode("gbk"),
    "GB 18030": TEXT.encode("gb18030"),
    "Big5": "一座房子".encode("big5"),
    "Shift JIS": "緑の家".encode("shift_jis"),
    "Windows 1252": "grünes Haus".encode("cp1252"),
    "UTF-16 without a mark": b"a green house".decode().encode("utf-16-le"),
    "UTF-16 that ends in the middle": TEXT.encode("utf-16")[:-1],
}


@pytest.mark.parametrize("kind", READ)
def test_captions_in_every_encoding_that_says_what_it_is(kind: str, images: Path) -> None:
    (images / "0.txt").write_bytes(READ[kind])
    found = read(images)
    assert captions(found)["0.png"] == TEXT
    assert found.problems == []
    (images / "0.txt").unlink()
    (images / "metadata.csv").write_bytes(
        READ[kind][:0] + f'file_name,text\n0.png,"{TEXT}"\n'.encode(kind.lower() if kind[-1].isdigit() else "utf-16")
    )
    assert captions(read(images))["0.png"] == TEXT


@pytest.mark.parametrize("kind", NOT_READ)
def test_captions_in_other_encodings_are_named_with_what_to_do(kind: str, images: Path) -> None:
    (images / "0.txt").write_bytes(NOT_READ[kind])
    found = read(images)
    (problem,) = found.problems
    assert problem.path.name == "0.txt"
    assert "save it as UTF-8" in problem.what
    assert not problem.fatal
    assert found.images[0].caption is None
    (images / "captions.json").write_bytes(NOT_READ[kind])
    with pytest.raises(DatasetError, match="save it as UTF-8"):
        read(images)


@pytest.mark.parametrize(
    ("image", "text"),
    [("x.JPG", "x.TXT"), ("x.JPG", "x.txt"), ("x.jpg", "x.Txt"), ("x.PNG", "x.CAPTION"), ("a.b.JPEG", "a.b.TXT")],
)
def test_suffixes_in_any_case(image: str, text: str, tmp_path: Path) -> None:
    save_image(tmp_path / image)
    (tmp_path / text).write_text("a house")
    assert captions(read(tmp_path, captions="sidecar")) == {image: "a house"}
    mask = save_image(tmp_path / f"{Path(image).stem}.MASK.PNG", mode="L", color=255)
    assert read(tmp_path).images[0].mask == mask


def test_of_two_captions_the_lower_case_one_is_taken(tmp_path: Path) -> None:
    save_image(tmp_path / "x.jpg")
    (tmp_path / "x.TXT").write_text("upper")
    (tmp_path / "x.txt").write_text("lower")
    assert captions(read(tmp_path)) == {"x.jpg": "lower"}


def test_metadata_in_capitals(images: Path) -> None:
    (images / "METADATA.CSV").write_text("file_name,text\n0.png,hello\n")
    assert captions(read(images, captions="metadata"))["0.png"] == "hello"


@pytest.mark.parametrize("name", ["x.heic", "x.HEIC", "x.heif", "x.avif", "x.jxl", "x.psd", "x.cr2", "sub/x.svg"])
def test_images_that_are_not_read_are_named(name: str, images: Path) -> None:
    (images / name).parent.mkdir(exist_ok=True)
    (images / name).write_bytes(b"\0\0\0\x18ftypheic")
    found = read(images)
    (problem,) = found.problems
    assert problem.fatal
    assert problem.path == images / name
    assert (
        problem.what == f"is {Path(name).suffix[1:].upper()}, which hnloader does not read; convert it to PNG or JPEG"
    )


def test_a_phones_images_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "IMG_2.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(DatasetError, match=r"none of the 2 images.*IMG_1.jpg is HEIC or AVIF.*convert it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("size", "buckets", "seen"),
    [
        ((4000, 90), True, "4%"),
        ((90, 4000), True, "4%"),
        ((1000, 300), True, "60%"),
        ((1000, 500), True, ""),
        ((600, 400), True, ""),
        ((600, 400), False, ""),
        ((4000, 90), False, "2%"),
    ],
)
def test_images_of_which_little_is_left_are_named(
    size: tuple[int, int], buckets: bool, seen: str, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name, size, color=(name[0] == "a" and "red") or "blue")
    problems = read(tmp_path, buckets=buckets).problems
    assert len(problems) == (2 if seen else 0)
    for problem in problems:
        assert problem.what.startswith(f"is {size[0]} x {size[1]}: only {seen} of it")
        assert "cut it into pieces" in problem.what
        assert not problem.fatal


# -- captions that are too long


def test_tokens_are_counted_without_a_vocabulary() -> None:
    assert count_tokens("a cat") == 2
    assert count_tokens("it's 12 o'clock, isn't it?") == 12
    assert count_tokens("") == 0


def test_long_captions_are_named_with_what_is_read(images: Path) -> None:
    (images / "0.txt").write_text("word " * 75)
    (images / "1.txt").write_text("word " * 76)
    found = read(images)
    note_long_captions(found, lambda each, index: each.caption or "", count_tokens, 75)
    (problem,) = found.problems
    assert problem.path.name == "1.png"
    assert "76 tokens, of which the model reads the first 75" in problem.what


def test_the_word_of_an_embedding_counts_as_its_vectors_and_comes_first(images: Path) -> None:
    config = read_config(None, {"method": "embedding", "output": "art.pt", "embedding.vectors": 5})
    found = read(images)
    assert trained_caption(found.images[0], config, 0) == "<art>, a thing number a"
    assert count_with_word(config, count_tokens, 5)("<art>, a thing <art>") == 13


def test_metadata_that_is_asked_for_must_be_there(images: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of metadata.jsonl"):
        read(images, captions="metadata")
    (images / "metadata.jsonl").write_text('{"file": 1}')
    with pytest.raises(DatasetError, match=r"metadata.jsonl cannot be read"):
        read(images, captions="metadata")


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


def test_images_are_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (0, 0, 64, 16))  # blue above red
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned right by a quarter
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    found = read(tmp_path)
    assert found.images[0].size == (32, 64)
    pixels = prepare(found.images[0], read_config(None, {}).data, 64, 8).pixels
    assert pixels.shape[1] > pixels.shape[2]
    left, right = pixels[:, :, 0].mean(dim=1), pixels[:, :, -1].mean(dim=1)
    assert left[0] > 0.8
    assert right[2] > 0.8


@pytest.mark.parametrize(("background", "value"), [("white", 1.0), ("black", -1.0), ("gray", -1 / 255)])
def test_transparent_parts_show_the_background(background: str, value: float, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", color=(255, 0, 0, 0), mode="RGBA")
    found = read(tmp_path, background=background)
    config = read_config(None, {"data.background": background}).data
    assert torch.allclose(prepare(found.images[0], config, 64, 8).pixels, torch.tensor(value), atol=0.01)


def test_an_image_moves_with_its_mask_and_repeats_the_edge_that_comes_free() -> None:
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
    save_image(tmp_path / "file.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 32, 64, 64))
    mask.save(tmp_path / "file.mask.png")
    found = {each.path.name: each for each in read(tmp_path, masks=True).images}
    assert set(found) == {"alpha.png", "file.png"}
    config = read_config(None, {"data.masks": True}).data
    alpha, file = (prepare(found[name], config, 64, 8).mask for name in ("alpha.png", "file.png"))
    assert alpha is not None
    assert file is not None
    assert (alpha[0, :, 5].min(), alpha[0, :, -5].max()) == (1, 0)
    assert (file[0, -5].min(), file[0, 5].max()) == (1, 0)
    assert prepare(found["file.png"], read_config(None, {}).data, 64, 8).mask is None
