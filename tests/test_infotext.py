"""The text of the parameters: as the webuis write and read it, and in files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hnloader.errors import HypernetworkError
from hnloader.infotext import (
    MOST_USED,
    Infotext,
    Used,
    _settings,
    listed_hashes,
    made_with,
    parse,
    read_infotext,
    save_png,
)

FROM_A_WEBUI = """a cat, (best quality:1.2) <hypernet:ink:0.8>
second line
Negative prompt: blurry, low
quality
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 6ce0161689, Model: "a, b: c", Denoising strength: 0.7, Hypernet hashes: "ink: 0123456789", Version: v1.8.0"""  # noqa: E501


def test_the_text_of_a_webui_is_read() -> None:
    info = parse(FROM_A_WEBUI)
    assert info.prompt == "a cat, (best quality:1.2) <hypernet:ink:0.8>\nsecond line"
    assert info.negative_prompt == "blurry, low\nquality"
    assert info.settings["Sampler"] == "Euler a"
    assert info.settings["CFG scale"] == "7"
    assert info.settings["Size"] == "512x768"
    assert info.settings["Model"] == "a, b: c"
    assert info.settings["Hypernet hashes"] == "ink: 0123456789"
    assert list(info.settings)[-1] == "Version"


def test_the_written_text_is_that_of_the_webuis() -> None:
    assert str(parse(FROM_A_WEBUI)) == FROM_A_WEBUI


def test_a_last_line_of_words_is_prompt() -> None:
    assert parse("a cat\nSteps: many, of: them") == Infotext("a cat\nSteps: many, of: them")
    assert parse("") == Infotext("")


def test_a_malformed_key_is_refused() -> None:
    with pytest.raises(ValueError, match="Key"):
        str(Infotext("a", "", {"x:y": "1"}))


def unmistakable(text: str) -> str:
    lines = [line.strip() for line in text.split("\n")]
    return "\n".join(line for line in lines if not line.startswith("Negative prompt:")).strip()


prompts = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\n")).map(unmistakable)
keys = st.from_regex(r"[A-Za-z][A-Za-z0-9 /-]*[A-Za-z0-9]", fullmatch=True)


@given(prompts, prompts, st.dictionaries(keys, st.text(), min_size=3))
@example("", "", {"ab": "", "cd": '"', "ef": " x\\"})
@example("", "low", {"ab": '"quoted"', "cd": "a, b", "ef": "1\n2"})
def test_written_parameters_are_read_back(prompt: str, negative: str, settings: dict[str, str]) -> None:
    info = Infotext(prompt, negative, settings)
    assert parse(str(info)) == info


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse(text)


@pytest.mark.parametrize("prompt", ["a cat", "a café", "水墨 🎨", "line\nline"])
def test_a_png_file_carries_its_parameters(tmp_path: Path, prompt: str) -> None:
    info = Infotext(prompt, "blurry", {"Steps": "20", "Seed": "1", "Model": "a, b"})
    path = tmp_path / "image.png"
    save_png(Image.new("RGB", (8, 8), "red"), path, info)
    assert read_infotext(path) == info
    with Image.open(path) as image:
        assert image.info["parameters"] == str(info)
        assert image.getpixel((0, 0)) == (255, 0, 0)


def test_an_image_without_parameters_has_none(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path)
    assert read_infotext(path) is None


def test_a_failed_png_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HypernetworkError, match=r"\.png"):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "gone" / "image.png", Infotext("a"))

    class Unwritable:
        def save(self, path: Path, **_: object) -> None:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    target = tmp_path / "image.png"
    target.write_bytes(b"before")
    with pytest.raises(HypernetworkError, match="No space left on device"):
        save_png(Unwritable(), target, Infotext("a"))  # type: ignore[arg-type]
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize(
    "line", ["a" * 1_000_000, "a b, c: " + "d " * 500_000, 'ab: "' * 200_000, 'ab: "\\\\' * 100_000, "," * 1_000_000]
)
def test_a_hostile_line_takes_no_time(line: str) -> None:
    assert parse(f"a red circle\n{line}").prompt.startswith("a red circle")


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet='ab1 -/:,"\\\n\t.', max_size=60))
def test_settings_match_the_regular_expression_of_the_webuis(line: str) -> None:
    rule = r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)'
    assert _settings(line) == re.findall(rule, line)


# -- hypernetworks and embeddings in an image


def test_tags_hashes_and_old_settings_are_combined() -> None:
    about = parse(
        'a cat <hypernet:ink:0.8> <hypernet:"wash, gray: v2":0.5:k=1> <hypernet:gone:1> <hypernet:bad:x> <lora:l:1>\n'
        "Steps: 20, Seed: 1, Hypernet not applied: gone, "
        'Hypernet hashes: "ink: 0123456789, wash, gray: v2: abcdef0123, row: 1111111111", '
        'TI hashes: "EasyNegative: c74b4e810b03, x, y: 0011223344ff"'
    )
    assert made_with(about) == [
        Used("hypernetwork", "ink", 0.8, "0123456789"),
        Used("hypernetwork", "wash, gray: v2", 0.5, "abcdef0123"),
        Used("hypernetwork", "row", None, "1111111111"),
        Used("embedding", "EasyNegative", None, "c74b4e810b03"),
        Used("embedding", "x, y", None, "0011223344ff"),
    ]


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        ("Hypernet: net, Hypernet hash: bab41cfb", Used("hypernetwork", "net", None, "bab41cfb")),
        (
            "Hypernet: net-60000(bab41cfb), Hypernet strength: 0.7",
            Used("hypernetwork", "net-60000", 0.7, "bab41cfb"),
        ),
        ("Hypernet: net, Hypernet strength: inf", Used("hypernetwork", "net")),
        ("Hypernet: net, Hypernet strength: much", Used("hypernetwork", "net")),
        ("Hypernet: None, Hypernet strength: 1", None),
    ],
)
def test_images_of_2022_name_one_hypernetwork(settings: str, used: Used | None) -> None:
    assert made_with(parse(f"a cat\nSteps: 20, Seed: 1, {settings}")) == ([] if used is None else [used])


def test_an_image_names_a_bounded_number() -> None:
    tags = "".join(f"<hypernet:a{index}(0123abcd)>" for index in range(30_000))
    words = ", ".join(f"e{index}: 0123456789ab" for index in range(30_000))
    used = made_with(parse(f'{tags}\nSteps: 20, Seed: 1, TI hashes: "{words}"'))
    assert [one.kind for one in used] == ["hypernetwork"] * MOST_USED + ["embedding"] * MOST_USED


def test_a_hostile_list_of_hashes_takes_no_time() -> None:
    assert list(listed_hashes("a: 0123" * 200_000 + "x: " * 200_000 + ", " * 200_000)) == []


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "ascii", "undefined"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_parameters_in_jpeg_and_webp(kind: str, encoding: str, tmp_path: Path) -> None:
    text = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 1"
    if encoding.startswith("utf"):
        text = text.replace("cat", "кошка")
        comment = b"UNICODE\0" + text.encode(encoding)
    else:
        comment = (b"ASCII\0\0\0" if encoding == "ascii" else bytes(8)) + text.encode()
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(tmp_path / "made.jpg", kind, exif=exif)
    assert read_infotext(tmp_path / "made.jpg") == parse(text)


@pytest.mark.parametrize("kind", ["iTXt", "zTXt", "packed iTXt", "after the pixels"])
def test_every_kind_of_text_chunk_is_read(kind: str, tmp_path: Path) -> None:
    chunks = PngInfo()
    text = "a cat" if kind == "zTXt" else "кошка"
    if kind == "zTXt":
        chunks.add_text("parameters", text, zip=True)
    elif kind == "after the pixels":
        chunks.add(b"iTXt", b"parameters\0\0\0\0\0" + text.encode(), after_idat=True)
    else:
        chunks.add_itxt("parameters", text, "en", "key", zip=kind.startswith("packed"))
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=chunks)
    assert read_infotext(tmp_path / "made.png") == parse(text)
