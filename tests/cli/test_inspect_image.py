"""`hnloader inspect image.png`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import hnloader
from hnloader.cli.app import app
from hnloader.infotext import Infotext, save_png
from tests.support.paths import GOLDENS
from tests.support.tiny_model import save_hypernetwork


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], env=environment)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a library, embeddings and an image that names both."""
    for name in ("library", "embeddings"):
        (tmp_path / name).mkdir()
    library = tmp_path / "library"
    for name in ("gelu_full", "relu_121", "linear_121"):
        (library / f"{name}.pt").write_bytes((GOLDENS / f"{name}.pt").read_bytes())
    (library / "relu_121.pt").rename(library / "renamed.pt")
    (tmp_path / "embeddings" / "bad hands.pt").write_bytes(b"an embedding")
    gelu = hnloader.inspect(GOLDENS / "gelu_full.pt").short_hash
    relu = hnloader.inspect(GOLDENS / "relu_121.pt").short_hash
    hands = hashlib.sha256(b"an embedding").hexdigest()[:12]
    about = Infotext(
        "a cat <hypernet:gelu_full:0.8> <hypernet:relu_121:0.5> <hypernet:linear_121> <hypernet:gone>",
        "dog",
        {
            "Steps": "20",
            "Hypernet hashes": f"gelu_full: {gelu}, relu_121: {relu}, linear_121: 0123456789",
            "TI hashes": f"bad hands: {hands}, other: 001122334455",
            "Seed": "1",
        },
    )
    save_png(Image.new("RGB", (8, 8)), tmp_path / "made.png", about)
    return tmp_path


def inspect_image(folder: Path, *arguments: object) -> Result:
    return run(
        folder / "made.png",
        *("--hypernet-dir", folder / "library", "--embedding-dir", folder / "embeddings", *arguments),
        XDG_CACHE_HOME=str(folder / "cache"),
        HOME=str(folder),
    )


def test_json_has_the_files_of_an_image(made: Path) -> None:
    result = inspect_image(made, "--json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert found["prompt"].startswith("a cat <hypernet:gelu_full:0.8>")
    assert (found["negative_prompt"], found["settings"]["Seed"]) == ("dog", "1")
    library = made / "library"
    assert [(one["name"], one["strength"], one["file"], one["match"]) for one in found["hypernetworks"]] == [
        ("gelu_full", 0.8, str(library / "gelu_full.pt"), "hash"),
        ("relu_121", 0.5, str(library / "renamed.pt"), "hash"),
        ("linear_121", 1.0, str(library / "linear_121.pt"), "other file"),
        ("gone", 1.0, None, None),
    ]
    assert [(one["name"], one["file"], one["match"]) for one in found["embeddings"]] == [
        ("bad hands", str(made / "embeddings" / "bad hands.pt"), "hash"),
        ("other", None, None),
    ]


def test_image_is_shown_in_full(made: Path) -> None:
    result = inspect_image(made)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.replace("│", " ").split())
    for words in ("a cat", "Negative", "gelu_full 0.8", "renamed.pt", "(different hash)", "gone 1: not in the library"):
        assert words in shown
    both = run(
        made / "made.png", GOLDENS / "gelu_full.pt", "--hypernet-dir", made / "library", XDG_CACHE_HOME=str(made)
    )
    assert both.exit_code == 0
    assert "made.png" in both.stdout
    assert "1 hypernetwork" in both.stderr


def test_hashes_are_cached(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect_image(made)

    def refuse(path: object) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("hnloader.hashes.sha256_of", refuse)
    result = inspect_image(made, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["hypernetworks"][1]["match"] == "hash"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_image_of_2022_finds_its_file_by_hash(kind: str, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    save_hypernetwork(library / "renamed.pt", (320, 640), seed=1)
    save_hypernetwork(library / "net.pt", (320, 640), seed=2)
    digest = hnloader.inspect(library / "renamed.pt").legacy_hash
    text = f"a cat\nSteps: 20, Seed: 1, Hypernet: net, Hypernet hash: {digest}, Hypernet strength: 0.7"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / "made.img", kind, exif=exif)
    result = run(tmp_path / "made.img", "--json", "--hypernet-dir", library, XDG_CACHE_HOME=str(tmp_path))
    (one,) = json.loads(result.stdout)[0]["hypernetworks"]
    assert one == {
        "name": "net", "strength": 0.7, "hash": digest, "file": str(library / "renamed.pt"), "match": "hash",
    }  # fmt: skip


def test_image_without_parameters_exits_with_1(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    result = run(tmp_path / "plain.png")
    assert result.exit_code == 1
    assert "an image without generation parameters" in result.stdout
    result = run(tmp_path / "plain.png", "--embedding-dir", tmp_path / "gone")
    assert result.exit_code == 2
