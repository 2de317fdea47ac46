"""`hnloader inspect`: what is shown for one file, for folders, as JSON, and for what is no hypernetwork."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from hnloader.infotext import Infotext, save_png
from tests.support.paths import GOLDENS
from tests.support.tiny_model import save_hypernetwork


def run(*arguments: object, **environment: str):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], env=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good files, one of them in a subfolder, an empty one and an image of a web page."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "relu_121.pt").write_bytes((GOLDENS / "relu_121.pt").read_bytes())
    (tmp_path / "sub" / "gelu_full.pt").write_bytes((GOLDENS / "gelu_full.pt").read_bytes())
    (tmp_path / "empty.pt").touch()
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html>not found</html>")
    (tmp_path / "notes.txt").write_text("not looked at")
    return tmp_path


def test_one_file_is_shown_in_full_with_its_hashes() -> None:
    path = GOLDENS / "gelu_full.pt"
    result = run(path)
    assert result.exit_code == 0
    info = hnloader.inspect(path)
    for text in ("SD 1", "320, 640, 768, 1280", "gelu", "1,234 steps on golden-base (deadbeef01)", "float16"):
        assert text in result.stdout
    assert info.sha256 in result.stdout.replace("\n", "")
    assert f"{info.short_hash} (in 2022: {info.legacy_hash})" in result.stdout
    assert info.sha256 not in run(path, "--no-hash").stdout


def test_a_folder_is_a_table_and_bad_files_are_listed_with_the_reason(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    (row,) = (line for line in lines if "sub/gelu_full.pt" in line)
    assert "SD 1" in row
    assert "1-0.05-1, gelu" in row
    assert any(line.startswith("✗ empty.pt") and "empty" in line for line in lines)
    assert any(line.startswith("✗ page.safetensors") and "web page" in line.lower() for line in lines)
    assert "notes.txt" not in result.stdout
    assert "2 hypernetworks, 2 other files" in result.stderr


def test_good_files_alone_exit_with_0(folder: Path) -> None:
    result = run(folder / "relu_121.pt", folder / "sub")
    assert result.exit_code == 0
    assert "relu_121.pt" in result.stdout
    assert "gelu_full.pt" in result.stdout


def test_the_table_has_hashes_when_asked(folder: Path) -> None:
    short = hnloader.inspect(folder / "relu_121.pt").short_hash
    assert short in run(folder, "--hash").stdout
    assert short not in run(folder).stdout


def test_a_narrow_terminal_keeps_names_and_architectures(folder: Path) -> None:
    result = run(folder, COLUMNS="80")
    assert max(map(len, result.stdout.splitlines()[:6])) <= 80
    assert "sub/gelu_full.pt" in result.stdout
    assert "1-2-1, relu" in result.stdout


def test_json_is_an_array_with_the_errors_in_it(folder: Path) -> None:
    result = run(folder, "--json")
    assert result.exit_code == 1
    entries = {Path(entry["path"]).name: entry for entry in json.loads(result.stdout)}
    assert set(entries) == {"relu_121.pt", "gelu_full.pt", "empty.pt", "page.safetensors"}
    assert entries["relu_121.pt"] == hnloader.inspect(folder / "relu_121.pt").to_dict(hashes=False)
    assert entries["empty.pt"]["error"]["kind"] == "CorruptFileError"
    (one,) = json.loads(run(folder / "relu_121.pt", "--json", "--hash").stdout)
    assert one["sha256"] == hnloader.inspect(folder / "relu_121.pt").sha256


def test_a_missing_file_is_one_line_and_exit_1(tmp_path: Path) -> None:
    result = run(tmp_path / "gone.pt")
    assert result.exit_code == 1
    assert len((result.stdout + result.stderr).strip().splitlines()) == 1
    assert "gone.pt" in result.stdout


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 0
    assert "No .pt, .safetensors or .hns file was found" in result.stderr


def test_text_from_files_cannot_reach_the_terminal_as_commands(tmp_path: Path) -> None:
    data = torch.load(GOLDENS / "relu_121.pt", weights_only=True)
    evil = "\x1b[2J\x1b]0;owned\x07[bold]x[/bold]\u202egpj\r\nnext"
    data |= {"name": evil, "sd_checkpoint_name": evil, "optional_info": evil}
    path = tmp_path / "[red]evil[slash].pt"
    torch.save(data, path)
    for result in (run(path), run(tmp_path), run(path, "--json")):
        assert result.exit_code == 0
        for letter in "\x1b\x07\u202e\r":
            assert letter not in result.output
    assert "[bold]x[/bold]" in run(path).stdout
    assert "[red]evil[slash].pt" in run(tmp_path).stdout


def test_a_malicious_file_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    path = tmp_path / "evil.pt"
    torch.save({768: Evil()}, path)
    result = run(path)
    assert result.exit_code == 1
    assert not marker.exists()
    assert len(result.stdout.strip().splitlines()) == 1


def test_no_argument_is_a_usage_error() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Missing argument" in result.stderr


def test_many_files_of_another_kind_share_a_line(folder: Path) -> None:
    for index in range(50):
        save_file({f"lora_unet_{index}.lora_up.weight": torch.zeros(2, 2)}, folder / f"lora-{index:02}.safetensors")
        torch.save({f"key {index}": "a text"}, folder / f"other-{index:02}.pt")
        (folder / f"cut-off-{index:02}.pt").write_bytes((GOLDENS / "relu_121.pt").read_bytes()[: 100 + index])
    result = run(folder)
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if line.startswith("✗")]
    assert "✗ 50 files: a LoRA; lora-00.safetensors, lora-01.safetensors and 48 more" in lines
    assert "✗ 50 files: a dict without a key per width; other-00.pt, other-01.pt and 48 more" in lines
    # What is damaged is named with its own reason, and so are few of a kind.
    assert sum(line.startswith("✗ cut-off-") for line in lines) == 50
    assert len(lines) == 2 + 50 + 2
    assert "2 hypernetworks, 152 other files" in result.stderr
    assert len(json.loads(run(folder, "--json").stdout)) == 154


# -- images


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a library, embeddings and an image that names of both."""
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


def of_image(folder: Path, *arguments: object):
    return run(
        folder / "made.png",
        *("--hypernet-dir", folder / "library", "--embedding-dir", folder / "embeddings", *arguments),
        XDG_CACHE_HOME=str(folder / "cache"),
        HOME=str(folder),
    )


def test_an_image_names_its_hypernetworks_and_their_files(made: Path) -> None:
    result = of_image(made, "--json")
    assert result.exit_code == 0, result.output
    (told,) = json.loads(result.stdout)
    assert told["prompt"].startswith("a cat <hypernet:gelu_full:0.8>")
    assert (told["negative_prompt"], told["settings"]["Seed"]) == ("dog", "1")
    library = made / "library"
    assert [(one["name"], one["strength"], one["file"], one["match"]) for one in told["hypernetworks"]] == [
        ("gelu_full", 0.8, str(library / "gelu_full.pt"), "hash"),
        ("relu_121", 0.5, str(library / "renamed.pt"), "hash"),
        ("linear_121", 1.0, str(library / "linear_121.pt"), "other file"),
        ("gone", 1.0, None, None),
    ]
    assert [(one["name"], one["file"], one["match"]) for one in told["embeddings"]] == [
        ("bad hands", str(made / "embeddings" / "bad hands.pt"), "hash"),
        ("other", None, None),
    ]


def test_an_image_is_shown_in_full(made: Path) -> None:
    result = of_image(made)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.replace("│", " ").split())
    for words in ("a cat", "Negative", "gelu_full 0.8", "renamed.pt", "has another hash", "gone 1: not in the library"):
        assert words in shown
    both = run(
        made / "made.png", GOLDENS / "gelu_full.pt", "--hypernet-dir", made / "library", XDG_CACHE_HOME=str(made)
    )
    assert both.exit_code == 0
    assert "made.png" in both.stdout
    assert "1 hypernetwork" in both.stderr


def test_hashes_of_the_library_are_kept_for_the_next_image(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_image(made)

    def refuse(path: object) -> str:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr("hnloader.hashes.sha256_of", refuse)
    result = of_image(made, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["hypernetworks"][1]["match"] == "hash"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_an_image_of_2022_finds_its_file_by_its_hash(kind: str, tmp_path: Path) -> None:
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


def test_an_image_without_parameters_is_no_hypernetwork(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    result = run(tmp_path / "plain.png")
    assert result.exit_code == 1
    assert "a PNG image" in result.stdout
    result = run(tmp_path / "plain.png", "--embedding-dir", tmp_path / "gone")
    assert result.exit_code == 2
