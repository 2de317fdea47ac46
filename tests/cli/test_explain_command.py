from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from tests.support.small_decoders import WIDTH
from tests.support.small_language_models import save_language_model


@pytest.fixture
def run(tiny_model: Path, styles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run `explain` with the tiny model."""
    monkeypatch.chdir(tmp_path)

    def explain(*arguments: object):
        defaults = ["--model", tiny_model, "--hypernet-dir", styles, "--device", "cpu"]
        return CliRunner().invoke(app, ["explain", *map(str, [*defaults, *arguments])])

    return explain


def test_the_overview_has_plans_and_costs(run) -> None:
    result = run("ink:0.8", "--batch", 4)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any("cross-attention" in line and "cache" in line for line in lines)
    assert any("latents and" in line and "4 x" in line for line in lines)


def test_json_has_every_side_of_every_layer(run) -> None:
    result = run("ink:0.8", "oil:0.5", "--json", "--size", "64x32")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["side"] for row in found["rows"]} == {"k", "v"}
    height, width = found["step"]["size"]
    assert width == 2 * height
    totals = found["totals"]
    assert totals["multiply_adds"] == sum(row["multiply_adds"] for row in found["rows"])
    assert totals["share"] == totals["multiply_adds"] / found["step"]["multiply_adds"]


def test_exact_and_no_fold(run) -> None:
    exact = json.loads(run("ink", "--json", "--exact").stdout)
    assert set(exact["totals"]["plans"]) == {"exact"}
    assert exact["totals"]["multiply_adds_per_text"] == 0
    unfolded = json.loads(run("ink", "--json", "--no-fold").stdout)
    assert "fold" not in unfolded["totals"]["plans"]
    assert unfolded["totals"]["multiply_adds"] < exact["totals"]["multiply_adds"]


def test_start_and_end_are_ignored_with_a_note(run) -> None:
    result = run("ink:0.8:start=0.5", "--json")
    assert "none" not in json.loads(result.stdout)["totals"]["plans"]
    assert "start and end are ignored" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing"], 1, "missing"),
        (["sd1"], 1, "sd1"),
        (["ink", "--size", "big"], 2, "big"),
        (["ink:strong"], 2, "strong"),
        (["ink", "--model", "missing-folder"], 1, "missing-folder"),
    ],
)
def test_failures(run, arguments, code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_language_models(run, tmp_path: Path) -> None:
    llm = save_language_model(tmp_path / "llm")
    hn = hnloader.Hypernetwork.new((f"{WIDTH}:self",), hnloader.Architecture(activation="relu"))
    hnloader.save(hn.requires_grad_(False), tmp_path / "style.safetensors")
    result = run(tmp_path / "style.safetensors", "--model", llm, "--batch", 3)
    assert result.exit_code == 0, result.output
    assert "self-attention layers: live" in result.stdout and "3 x 512 tokens" in result.stdout
    assert run(tmp_path / "style.safetensors", "--model", llm, "--size", "64x64").exit_code == 2
