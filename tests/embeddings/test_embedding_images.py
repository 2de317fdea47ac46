"""Embeddings in images: the text chunk, the stripes of pixels, and other images."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hnloader import CorruptFileError, HypernetworkError, UnknownFormatError, UnsupportedArchitectureError
from hnloader.embeddings import Embedding, embedding_images, load_embedding, save_embedding

VECTORS = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))
TREE = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}},
    "name": "style",
    "step": 50,
    "sd_checkpoint": None,
    "sd_checkpoint_name": None,
}


def sequence() -> Iterator[int]:
    """The numbers that scramble the pixels, one by one; tests/embeddings holds the writer against them."""
    seed = 0
    while True:
        seed = (1664525 * seed + 1013904223) % 2**32
        yield seed % 255 & 0x0F


def striped(data: bytes, image: Image.Image, decoration: int = 0xA0) -> Image.Image:
    """The image between two stripes of data, pixel by pixel, with any pattern in the high bits."""
    height, columns = image.height, -(-len(data) // (3 * image.height)) + 1
    padded = (data * (columns * height * 3 // len(data) + 1))[: columns * height * 3]
    result = Image.new("RGB", (2 * columns + 2 + image.width, height))
    for start, halves in ((0, [b & 15 for b in padded]), (columns + 2 + image.width, [b >> 4 for b in padded])):
        values = [
            half ^ noise | decoration for half, noise in zip(halves, islice(sequence(), len(halves)), strict=True)
        ]
        for index in range(columns * height):
            place = (start + index % columns, index // columns)
            result.putpixel(place, tuple(values[3 * index : 3 * index + 3]))
    result.paste(image, (columns + 1, 0))
    return result


def photo(size: tuple[int, int] = (90, 120)) -> Image.Image:
    values = np.random.default_rng(0).integers(1, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_the_text_chunk(tmp_path: Path) -> None:
    chunks = PngInfo()
    chunks.add_text("sd-ti-embedding", base64.b64encode(json.dumps(TREE).encode()).decode())
    photo().save(tmp_path / "style.png", pnginfo=chunks)
    found = load_embedding(tmp_path / "style.png")
    assert torch.equal(found.vectors, VECTORS)
    assert (found.name, found.step) == ("style", 50)


@pytest.mark.parametrize("decoration", [0x10, 0xF0])
@pytest.mark.parametrize("ending", [".png", ".webp"])
def test_pixels_alone(decoration: int, ending: str, tmp_path: Path) -> None:
    image = striped(zlib.compress(json.dumps(TREE).encode()), photo(), decoration)
    image.save(tmp_path / f"style{ending}", lossless=True)
    assert torch.equal(load_embedding(tmp_path / f"style{ending}").vectors, VECTORS)


def test_written_images_have_chunk_and_pixels(tmp_path: Path) -> None:
    save_embedding(Embedding(VECTORS, name="style", step=50), tmp_path / "style.png")
    with Image.open(tmp_path / "style.png") as image:
        assert json.loads(base64.b64decode(image.text["sd-ti-embedding"])) == TREE
        bare = image.convert("RGB")
    bare.save(tmp_path / "bare.png")
    assert torch.equal(load_embedding(tmp_path / "bare.png").vectors, VECTORS)
    # The left stripe, read pixel by pixel.
    pixels = np.asarray(bare)
    columns = int(np.flatnonzero(pixels.sum(axis=(0, 2)) == 0)[0])
    low = (pixels[:, :columns] & 15).reshape(-1)
    unscrambled = [value ^ noise for value, noise in zip(low.tolist(), islice(sequence(), low.size), strict=True)]
    first = zlib.compress(json.dumps(TREE).encode(), 9)
    assert unscrambled[:100] == [byte & 15 for byte in first[:100]]


def test_ordinary_images_hold_none(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    framed = photo()
    framed.paste((0, 0, 0), (10, 0, 12, 120))
    framed.paste((0, 0, 0), (60, 0, 62, 120))
    framed.save(tmp_path / "columns.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    for name in ("photo", "columns", "black"):
        with pytest.raises(UnknownFormatError, match=name):
            load_embedding(tmp_path / f"{name}.png")


def test_hostile_images_are_refused(tmp_path: Path) -> None:
    bomb = zlib.compress(b'{"a": "' + b"x" * (80 << 20) + b'"}', 9)
    striped(bomb, photo()).save(tmp_path / "bomb.png")
    with pytest.raises(CorruptFileError, match="8,388,608"):
        load_embedding(tmp_path / "bomb.png")
    for name, text in [
        ("a", "%%%"),
        ("b", base64.b64encode(b"[" * 100_000).decode()),
        ("c", base64.b64encode(b"{").decode()),
    ]:
        chunks = PngInfo()
        chunks.add_text("sd-ti-embedding", text)
        photo().save(tmp_path / f"{name}.png", pnginfo=chunks)
        with pytest.raises(CorruptFileError, match="damaged"):
            load_embedding(tmp_path / f"{name}.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match="damaged"):
        load_embedding(tmp_path / "cut.png")


START = '{"string_to_param": {"*": {"TORCHTENSOR": ['


@pytest.mark.parametrize(
    "text",
    [
        '{"string_to_param": [[]' + ",[]" * 500_000 + "]}",
        '{"string_to_param": [{}' + ",{}" * 500_000 + "]}",
        START + "[" * 900 + "1" + "]" * 900 + "]}}}",
        START + '"a"' + ',"a"' * 99 + "]}}}",
        START + "true,false]}}}",
        START + "[1], [[2]]]}}}",
        START + "1], [2]]}}}",
        START + '{"TORCHTENSOR": [1]}]}}}',
        START + "1e400]}}}",
        START + "9" * 1_000_000 + "]}}}",
        '{"string_to_param": {"*": {"TORCHTENSOR": []}}}',
        '{"string_to_param": {"*": {"TORCHTENSOR": 1}}}',
    ],
)
@pytest.mark.parametrize("place", ["text", "pixels"])
def test_hostile_texts_end_in_errors_of_ours(text: str, place: str, tmp_path: Path) -> None:
    if place == "text":
        chunks = PngInfo()
        chunks.add_text("sd-ti-embedding", base64.b64encode(text.encode()).decode())
        photo().save(tmp_path / "a.png", pnginfo=chunks)
    else:
        embedding_images._with_stripes(photo(), zlib.compress(text.encode())).save(tmp_path / "a.png")
    with pytest.raises(HypernetworkError):
        load_embedding(tmp_path / "a.png")


def test_too_large_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"\.safetensors"):
        save_embedding(Embedding(torch.randn(1000, 768)), tmp_path / "large.png")
    assert list(tmp_path.iterdir()) == []
    save_embedding(Embedding(torch.randn(200, 768)), tmp_path / "large.png")
    assert load_embedding(tmp_path / "large.png").count == 200


def test_sdxl_embeddings_have_no_image(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"^Embedding: .*\.safetensors"):
        save_embedding(Embedding(VECTORS, torch.zeros(2, 1280)), tmp_path / "xl.png")
    assert list(tmp_path.iterdir()) == []
