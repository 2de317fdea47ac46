"""The images of a folder and their problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hnloader.errors import DatasetError
from tests.support.trainings import raises, read, save_image


def test_bad_files_are_excluded_and_reported(images: Path) -> None:
    (images / "broken.png").write_bytes((images / "0.png").read_bytes()[:200])
    (images / "text.jpg").write_text("not an image")
    save_image(images / "tiny.png", (20, 200))
    (images / "copy.png").write_bytes((images / "1.png").read_bytes())
    (images / "notes.md").write_text("ignored")
    (images / ".hidden.png").write_text("ignored")
    found = read(images)
    assert [each.path.name for each in found.images] == [f"{index}.png" for index in range(6)]
    excluded = {problem.path.name: problem.message for problem in found.problems if problem.excluded}
    assert set(excluded) == {"broken.png", "text.jpg", "tiny.png", "copy.png"}
    assert "Cannot be read" in excluded["broken.png"]
    assert "20 x 200" in excluded["tiny.png"]
    assert "1.png" in excluded["copy.png"]


def test_of_two_equal_images_the_captioned_one_is_used(images: Path) -> None:
    (images / "0 copy.png").write_bytes((images / "0.png").read_bytes())
    (images / "0.txt").write_text("a square")
    found = read(images)
    assert [each.caption for each in found.images if each.path.name.startswith("0")] == ["a square"]
    assert [problem.path.name for problem in found.problems if problem.excluded] == ["0 copy.png"]


def test_animated_images_are_reported(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = read(tmp_path)
    assert len(found.images) == 1
    assert any("2 frames" in problem.message and not problem.excluded for problem in found.problems)


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "broken"])
def test_a_folder_without_usable_images_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("")
    elif kind != "missing":
        folder.mkdir()
    if kind == "broken":
        (folder / "a.png").write_text("x")
    words = {"missing": "does not exist", "file": "is not a folder", "empty": "found no images", "broken": "a.png"}
    with raises(DatasetError, str(folder), words[kind]):
        read(folder)


def test_a_single_image_is_reported(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    assert any("single image" in problem.message for problem in read(tmp_path).problems)


@pytest.mark.parametrize("name", ["x.heic", "x.HEIC", "x.heif", "x.avif", "x.jxl", "x.psd", "x.cr2", "sub/x.svg"])
def test_unsupported_formats_are_reported(name: str, images: Path) -> None:
    (images / name).parent.mkdir(exist_ok=True)
    (images / name).write_bytes(b"\0\0\0\x18ftypheic")
    found = read(images)
    (problem,) = found.problems
    assert problem.excluded
    assert problem.path == images / name
    assert Path(name).suffix[1:].upper() in problem.message


def test_heic_images_with_another_suffix_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "IMG_2.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with raises(DatasetError, "all 2 images", "IMG_1.jpg", "HEIC or AVIF"):
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
def test_strongly_cropped_images_are_reported(size: tuple[int, int], buckets: bool, seen: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name, size, color=(name[0] == "a" and "red") or "blue")
    problems = read(tmp_path, buckets=buckets).problems
    assert len(problems) == (2 if seen else 0)
    for problem in problems:
        assert f"{seen} of {size[0]} x {size[1]}" in problem.message
        assert not problem.excluded
