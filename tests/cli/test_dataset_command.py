"""`hnloader dataset check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hnloader.cli.app import app
from tests.support.tiny_model import save_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_folder_in_place_of_the_command_suggests_check() -> None:
    result = CliRunner().invoke(app, ["dataset", "images"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "'hnloader dataset check images'" in result.stderr


def test_captions_and_problems_are_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "0.txt").write_text("a red house")
    (folder / "broken.png").write_text("no image")
    code, out, err = run("dataset", "check", folder, "--sheet", tmp_path / "sheet.png", "--resolution", 64)
    assert code == 1
    assert "a red house" in out
    assert "48 x 48" in out
    assert "excluded" in err
    assert "broken.png: Cannot be read" in err
    assert "6 images to train on, 1 file excluded" in err
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 160
    (folder / "broken.png").unlink()
    assert run("dataset", "check", folder)[0] == 0


def test_unused_parts_of_the_dataset_are_reported(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    (folder / "0.txt").write_text("word " * 80)
    (folder / "1.txt").write_text("a b " * 20)
    (folder / "2.TXT").write_bytes("一座房子".encode("gbk"))
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("RGB", (4000, 90), "red").save(folder / "strip.png")
    code, out, err = run("dataset", "check", folder)
    said = " ".join(err.split())
    assert code == 1
    assert "0.png: The caption has 80 tokens, and the model reads the first 75." in said
    assert "1.png: The caption" not in said
    assert "2.TXT: Cannot be read: Invalid UTF-8." in said
    assert "phone.HEIC: HEIC is not supported." in said
    assert "strip.png: Only 4% of 4000 x 90 pixels" in said
    assert "704 x 320" in out

    config = tmp_path / "config.yaml"
    config.write_text(f"model: {tiny_model}\noutput: art.pt\nmethod: embedding\nembedding: {{num_vectors: 8}}\n")
    _, out, err = run("dataset", "check", folder, "--config", config)
    said = " ".join(err.split())
    assert "1.png: The caption has 49 tokens, and the model reads the first 30." in said  # 40, a comma, 8 vectors
    assert "3.png: The caption" not in said
