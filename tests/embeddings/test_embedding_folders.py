"""Embeddings in folders: every form counts, and other images do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hnloader.embeddings import Embedding, embedding_images, save_embedding
from hnloader.embeddings.embedding_files import embedding_library, embedding_named, is_embedding, library_of_all
from hnloader.embeddings.prompt_words import files_with_words
from hnloader.errors import CorruptFileError
from hnloader.library import Library

FORMS = (".pt", ".safetensors", ".bin", ".png", ".webp")


def save(path: Path, name: str = "") -> Path:
    """An embedding in the form of the suffix; WebP has it in the pixels alone."""
    embedding = Embedding(torch.randn(2, 24), name=name or path.stem)
    if path.suffix != ".webp":
        save_embedding(embedding, path)
        return path
    save_embedding(embedding, path.with_suffix(".png"))
    with Image.open(path.with_suffix(".png")) as image:
        image.convert("RGB").save(path, lossless=True)
    path.with_suffix(".png").unlink()
    return path


def photo(size: tuple[int, int] = (90, 120)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ordinary images, and other files with the suffixes of embeddings."""
    found = tmp_path / "files"
    found.mkdir()
    photo().save(found / "photo.png")
    photo().save(found / "photo.webp", lossless=True)
    photo().save(found / "lossy.webp")
    framed = photo()
    framed.paste((16, 32, 240), (10, 0, 80, 120))
    framed.save(found / "framed.png")
    for mode in ("1", "L", "P", "RGBA", "I;16"):
        Image.new(mode, (40, 30)).save(found / f"black-{mode.replace(';', '')}.png")
    photo().quantize(5).save(found / "palette.png")
    (found / "cut.png").write_bytes((found / "photo.png").read_bytes()[:60])
    (found / "other.bin").write_bytes(b"\0\1\2\3" * 100)
    save(found / "shown.png").rename(found / "shown.preview.png")
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found(form: str, folder: Path) -> None:
    word = save(folder / f"word{form}")
    assert [file.path for file in embedding_library([folder]).files()] == [word]
    assert word in [file.path for file in library_of_all([folder]).files()]
    assert embedding_named("word", [folder]) == word
    assert files_with_words([folder], "a word, photo, framed, other") == [word]
    assert word not in [file.path for file in Library([folder]).files()] or form in (".pt", ".safetensors")


def test_the_name_in_an_image_is_its_word(folder: Path) -> None:
    image = save(folder / "download (3).png", "ink")
    assert embedding_named("ink", [folder]) == embedding_named("download (3)", [folder]) == image
    assert files_with_words([folder], "a download (3)") == []
    assert files_with_words([folder], "an <INK> drawing") == [image]


def test_a_given_embedding_comes_before_one_of_the_same_word(folder: Path, tmp_path: Path) -> None:
    given, other, unused = save(tmp_path / "ink.pt"), save(folder / "ink.bin"), save(tmp_path / "oil.pt")
    assert files_with_words([folder], "ink", [given, unused]) == [given, unused]
    assert files_with_words([folder], "ink", [unused]) == [unused, other]


@pytest.mark.parametrize("border", [0, 40])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pixels_without_a_text_chunk(border: int, mode: str, folder: Path) -> None:
    with Image.open(save(folder / "chunk.png")) as image:
        framed = Image.new("RGB", (image.width + 2 * border, image.height + 2 * border))
        framed.paste(image, (border, border))
    framed.convert(mode).save(folder / "bare.png")
    assert is_embedding(folder / "bare.png")


def test_other_images_are_decided_by_their_first_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(embedding_images, "read", lambda source: read.append(source.stem))
    for name in ("photo.png", "framed.png", "palette.png", "lossy.webp"):
        assert not is_embedding(folder / name)
    assert not read


def test_a_file_is_read_again_when_it_changes(folder: Path) -> None:
    photo().save(folder / "word.png")
    assert embedding_named("word", [folder]) is None
    save(folder / "word.png")
    assert embedding_named("word", [folder]) == folder / "word.png"


def test_a_damaged_bin_stays_in_listings(folder: Path) -> None:
    word = save(folder / "word.bin")
    word.write_bytes(word.read_bytes()[:-200])
    assert [file.path for file in library_of_all([folder]).files()] == [word]


@pytest.mark.parametrize("damage", ["cut off", "changed"])
def test_a_damaged_image_of_an_embedding_stays_in_listings(damage: str, folder: Path) -> None:
    word = save(folder / "card.png", "ink")
    data = word.read_bytes()
    inside = data.index(b"sd-ti-embedding") + 60
    word.write_bytes(data[:inside] + (b"" if damage == "cut off" else b"!!!!" + data[inside + 4 :]))
    assert word in [file.path for file in library_of_all([folder]).files()]
    assert files_with_words([folder], "no word of it") == []
    with pytest.raises(CorruptFileError, match=r"card"):
        files_with_words([folder], "a card")


def test_a_damaged_photo_is_not_listed(folder: Path) -> None:
    data = (folder / "photo.png").read_bytes()
    (folder / "photo.png").write_bytes(data[:200])
    assert folder / "photo.png" not in [file.path for file in library_of_all([folder]).files()]
