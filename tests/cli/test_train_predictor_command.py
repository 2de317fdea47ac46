"""`hnloader train-predictor` and its options."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hnloader.cli.app import app
from hnloader.prediction.predictor_file import load_predictor
from tests.support.predictors import SETTINGS, save_styles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_styles(tmp_path / "styles")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train-predictor", *map(str, arguments)])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def small() -> list[str]:
    return [part for key, value in SETTINGS.items() if key != "steps" for part in ("--set", f"{key}={value}")]


def test_init_prints_a_configuration_that_works(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    code, text, _ = run("--init")
    assert code == 0
    output = tmp_path / "predictor.safetensors"
    text = text.replace("model: ''", f"model: {tiny_model}").replace("styles: ''", f"styles: {folder}")
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("output: ''", f"output: {output}"))
    code, out, err = run(config, "--steps", 3, *small())
    assert code == 0, err
    assert out.strip() == str(output)
    assert "step 3 of 3: loss" in err
    assert load_predictor(output).about.step == 3
    code, out, _ = run("-o", output, "--status")
    assert code == 0
    assert "done, step 3 of 3" in out
    assert run(config, "--steps", 5, "--resume", *small())[0] == 0
    assert load_predictor(output).about.step == 5


def test_mistakes_are_named(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictor.safetensors"
    code, _, err = run("--model", tiny_model, "--styles", tmp_path / "none", "-o", output)
    assert code == 1
    assert "none" in err
    assert not (tmp_path / "predictor.training").exists()
    code, _, err = run("--model", tiny_model, "-o", output)
    assert code == 1
    assert "'styles'" in err
    code, _, err = run("--set", "batch=2", "-o", output)
    assert code == 1
    assert "batch_size" in err
