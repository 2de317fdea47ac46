"""Preview images and notes beside the files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hnloader.errors import HypernetworkError
from hnloader.ui.sidecars import (
    preview_path,
    read_description,
    read_notes,
    save_notes,
    save_preview,
    thumbnail,
)


def save_image(path: Path, color: str = "red", size: tuple[int, int] = (64, 32)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def test_finds_previews_of_the_webuis(tmp_path: Path) -> None:
    file = tmp_path / "ink.v2.pt"
    assert preview_path(file) is None
    later = save_image(tmp_path / "ink.v2.webp")
    assert preview_path(file) == later
    preview = save_image(tmp_path / "ink.v2.preview.png")
    assert preview_path(file) == preview
    plain = save_image(tmp_path / "ink.v2.png")
    assert preview_path(file) == plain


@pytest.mark.parametrize("existing", [None, "ink.jpg", "ink.preview.png", "ink.png"])
def test_a_saved_preview_is_found_first(tmp_path: Path, existing: str | None) -> None:
    file = tmp_path / "ink.pt"
    if existing:
        save_image(tmp_path / existing)
    saved = save_preview(file, Image.new("RGBA", (10, 10), (0, 0, 255, 255)))
    assert preview_path(file) == saved
    with Image.open(saved) as image:
        assert image.getpixel((5, 5)) == (0, 0, 255)


def test_a_thumbnail_is_small_and_current(tmp_path: Path) -> None:
    file = tmp_path / "ink.pt"
    assert thumbnail(file) is None
    save_image(tmp_path / "ink.png", "red", (2000, 1000))
    first = thumbnail(file)
    assert first is not None
    with Image.open(io.BytesIO(first)) as small:
        assert small.size == (320, 160)
    save_image(tmp_path / "ink.png", "blue", (900, 900))
    assert thumbnail(file) != first


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 100])
def test_a_damaged_preview_has_no_thumbnail(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ink.png").write_bytes(content)
    assert thumbnail(tmp_path / "ink.pt") is None


def test_notes_keep_the_other_keys(tmp_path: Path) -> None:
    (tmp_path / "ink.json").write_text(json.dumps({"description": "ä", "preferred weight": 0.8, "notes": "old"}))
    file = tmp_path / "ink.pt"
    assert read_notes(file) == "old"
    save_notes(file, "new")
    assert json.loads((tmp_path / "ink.json").read_text(encoding="utf-8")) == {
        "description": "ä",
        "preferred weight": 0.8,
        "notes": "new",
    }


@settings(deadline=None, max_examples=50)
@given(notes=st.text())
def test_notes_hold_any_text(tmp_path_factory: pytest.TempPathFactory, notes: str) -> None:
    file = tmp_path_factory.mktemp("notes") / "ink.pt"
    save_notes(file, notes)
    assert read_notes(file) == notes


@pytest.mark.parametrize("content", ["[1, 2]", "model: x", "{", "\ufeff[]"])
def test_another_programs_file_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "ink.json").write_text(content, encoding="utf-8")
    assert read_notes(tmp_path / "ink.pt") == ""
    with pytest.raises(HypernetworkError, match=r"ink\.json"):
        save_notes(tmp_path / "ink.pt", "mine")
    assert (tmp_path / "ink.json").read_text(encoding="utf-8") == content


def test_notes_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(HypernetworkError, match="100,001"):
        save_notes(tmp_path / "ink.pt", "x" * 100_001)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HypernetworkError, match="gone"):
        save_notes(tmp_path / "gone" / "ink.pt", "x")


def test_unreadable_notes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_notes(tmp_path / "ink.pt", "old")

    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("hnloader.files.open", refuse, raising=False)
        with pytest.raises(HypernetworkError, match="Permission denied"):
            save_notes(tmp_path / "ink.pt", "new")
    assert read_notes(tmp_path / "ink.pt") == "old"


def test_lone_surrogates_are_kept(tmp_path: Path) -> None:
    (tmp_path / "ink.json").write_text('{"description": "\\ud83d", "sd version": "SD1"}')
    save_notes(tmp_path / "ink.pt", "mine \ude00")
    assert read_description(tmp_path / "ink.pt") == "\ud83d"
    assert read_notes(tmp_path / "ink.pt") == "mine \ude00"
