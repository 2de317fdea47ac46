"""Captions from text files and metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hnloader.errors import ConfigError, DatasetError
from tests.support.trainings import captions, raises, read, save_image


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
def test_captions_from_other_metadata_files(name: str, text: str, images: Path) -> None:
    (images / name).write_text(text)
    found = read(images, captions="metadata")
    assert captions(found)["0.png"] == "hello"
    assert sum("No caption" in problem.message for problem in found.problems) == 5


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
def test_malformed_metadata_is_refused(name: str, text: str, asked: str, images: Path) -> None:
    (images / name).write_text(text)
    if name == "captions.json" and text == '{"file_name": "0.png"}':
        return  # a caption of an image of that name
    with raises(DatasetError, name, "file_name and text"):
        read(images, captions=asked)


@pytest.mark.parametrize(
    "text", ["0.png,a cat, sitting\n", "\x00", "file_name\n0.png\n", "name,text\n0.png,a\n", "x" * 200_000]
)
def test_a_malformed_table_is_refused(text: str, images: Path) -> None:
    begins = text if text.startswith(("file", "name", "x", "\x00")) else f"file_name,text\n{text}"
    (images / "metadata.csv").write_text(begins if "\n" in begins else f"{begins},text\n0.png,a\n")
    with raises(DatasetError, "metadata.csv"):
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
def test_captions_in_unicode_encodings(kind: str, images: Path) -> None:
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
def test_captions_in_other_encodings_are_reported(kind: str, images: Path) -> None:
    (images / "0.txt").write_bytes(NOT_READ[kind])
    found = read(images)
    (problem,) = found.problems
    assert problem.path.name == "0.txt"
    assert "UTF-8" in problem.message
    assert not problem.excluded
    assert found.images[0].caption is None
    (images / "captions.json").write_bytes(NOT_READ[kind])
    with raises(DatasetError, "UTF-8"):
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


def test_a_lower_case_suffix_wins(tmp_path: Path) -> None:
    save_image(tmp_path / "x.jpg")
    (tmp_path / "x.TXT").write_text("upper")
    (tmp_path / "x.txt").write_text("lower")
    assert captions(read(tmp_path)) == {"x.jpg": "lower"}


def test_metadata_file_names_ignore_case(images: Path) -> None:
    (images / "METADATA.CSV").write_text("file_name,text\n0.png,hello\n")
    assert captions(read(images, captions="metadata"))["0.png"] == "hello"


def test_required_metadata_must_exist(images: Path) -> None:
    with raises(ConfigError, "metadata.jsonl"):
        read(images, captions="metadata")
    (images / "metadata.jsonl").write_text('{"file": 1}')
    with raises(DatasetError, "metadata.jsonl"):
        read(images, captions="metadata")
