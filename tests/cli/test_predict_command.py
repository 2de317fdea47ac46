"""`hnloader predict` and its options."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from hnloader.demo import language_model_folder
from tests.support.predictors import save_style


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_style(tmp_path / "images", 120)


@pytest.fixture
def given(tiny_model: Path, tiny_predictor: Path) -> list[object]:
    return ["--model", tiny_model, "--predictor", tiny_predictor, "--device", "cpu"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_a_folder_becomes_a_file(given: list[object], images: Path, tmp_path: Path) -> None:
    output = tmp_path / "style.pt"
    code, out, err = run(images, "-o", output, *given)
    assert code == 0, err
    assert out.strip() == str(output)
    assert hnloader.load(output).name == "style"
    assert "predictor.safetensors" in err
    code, _, err = run(images, "-o", output, *given)
    assert code == 1
    assert "--overwrite" in err
    assert run(images / "0.png", images / "1.png", "-o", output, "--overwrite", *given)[0] == 0


def test_two_folders_are_mixed(given: list[object], images: Path, tmp_path: Path) -> None:
    other, output = save_style(tmp_path / "other", 30), tmp_path / "mixed.safetensors"
    code, _, err = run(images, other, "--mix", 0.3, "-o", output, *given)
    assert code == 0, err
    assert hnloader.load(output).metadata["mix"] == 0.3
    assert run(images, "--mix", 0.3, "-o", tmp_path / "a.pt", *given)[0] == 2
    code, _, err = run(images, other, "-o", tmp_path / "a.pt", *given)
    assert code == 2
    assert "--mix" in err
    code, _, err = run(images, other, "--mix", 1.5, "-o", tmp_path / "a.pt", *given)
    assert code == 1
    assert "1.5" in err


def test_bad_input_gets_one_line(given: list[object], images: Path, styles: Path, tmp_path: Path) -> None:
    code, _, err = run(images, "-o", tmp_path / "a.txt", *given)
    assert code == 1
    assert "a.txt" in err
    code, _, err = run(tmp_path / "none", "-o", tmp_path / "a.pt", *given)
    assert code == 1
    assert "none" in err
    code, _, err = run(images, "-o", tmp_path / "a.pt", "--predictor", styles / "oil.safetensors", *given[:2])
    assert code == 1
    assert "train-predictor" in err
    assert not (tmp_path / "a.pt").exists()


def test_texts_become_a_file_for_the_language_model(tmp_path: Path) -> None:
    texts, output = tmp_path / "texts", tmp_path / "style.safetensors"
    texts.mkdir()
    story = "This is a story about Nora and a coin. Nora waited near the old barn."
    (texts / "a.txt").write_text(story)
    code, out, err = run(texts, "-o", output, "--device", "cpu")
    assert code == 0, err
    assert out.strip() == str(output)
    assert "text_predictor.safetensors" in err
    written = CliRunner().invoke(app, ["write", story, "-H", str(output), "--seed", "1", "--device", "cpu"])
    assert written.exit_code == 0, written.stderr
    assert written.stdout.startswith(story)


def test_texts_and_images_are_not_mixed_up(given: list[object], images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("This is a story.")
    code, _, err = run(tmp_path / "a.txt", "-o", tmp_path / "a.pt", *given)
    assert code == 1
    assert "found texts" in err
    code, _, err = run(images, "-o", tmp_path / "a.safetensors", "--model", language_model_folder())
    assert code == 1
    assert "found images" in err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    code, _, err = run(tmp_path / "empty", "-o", tmp_path / "a.safetensors", "--device", "cpu")
    assert code == 1
    assert "empty" in err
    assert not list(tmp_path.glob("a.safetensors"))
