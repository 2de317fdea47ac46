"""`hnloader export-lora`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hnloader
from hnloader.cli.app import app
from hnloader.network import Architecture
from tests.support.lora_models import PROMPTS, make_affine, make_random, read, simulate_refining
from tests.support.tiny_model import SELF_WIDTH, TEXT_WIDTH

WIDTHS = (SELF_WIDTH, TEXT_WIDTH)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export-lora", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hnloader.save(make_affine(WIDTHS), tmp_path / "style.pt")
    hnloader.save(make_random(WIDTHS, Architecture((1, 2, 1), "relu"), seed=3), tmp_path / "other.pt")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path


def sampling(folder: Path) -> tuple[object, ...]:
    return "--prompts", folder / "prompts.txt", "--images", 5, "--steps", 1


def test_errors_are_shown(folder: Path, tiny_model: Path) -> None:
    out = folder / "x.safetensors"
    result = run(folder / "style.pt", "--base", tiny_model, "--rank", "auto", "--out", out, *sampling(folder))
    assert result.exit_code == 0, result.output
    errors = json.loads(read(out)[1]["hnloader.errors"])
    for block, sides in errors.items():
        line = next(line for line in result.stdout.splitlines() if line.split()[:1] == [block])
        assert f"{100 * sides['v']['of_change']:.1f} %" in line
    assert "fidelity" in result.stdout
    assert "text contexts of 7 prompts" in result.stdout


def test_lycoris_beside_its_source(folder: Path, tiny_model: Path) -> None:
    result = run(folder / "style.pt", "--kind", "lycoris", "--base", tiny_model, "--strength", "0.5")
    assert result.exit_code == 0, result.output
    assert "exact up to rounding" in result.stdout
    metadata = read(folder / "style-lycoris.safetensors")[1]
    assert json.loads(metadata["hnloader.sources"])[0]["strength"] == 0.5
    again = run(folder / "style.pt", "--kind", "lycoris", "--base", tiny_model, "--strength", "0.5")
    assert "up to date" in again.stdout
    arguments = ("--kind", "lycoris", "--base", tiny_model, "--strength", "0.5", "--verify-only")
    assert run(folder / "style.pt", *arguments).exit_code == 0


def test_folders_become_folders_of_loras(folder: Path, tiny_model: Path) -> None:
    (folder / "broken.pt").write_bytes(b"PK\x03\x04 nothing")
    out = folder / "loras"
    result = run(folder, "--base", tiny_model, "--rank", 2, "--out", out, *sampling(folder))
    assert result.exit_code == 3, result.output
    assert sorted(path.name for path in out.iterdir()) == ["other-lora.safetensors", "style-lora.safetensors"]
    assert "broken.pt" in result.stdout
    assert "Poor fit" in result.stderr


def test_chains_become_one_file(folder: Path, tiny_model: Path) -> None:
    out = folder / "both.safetensors"
    files = (folder / "style.pt", folder / "other.pt")
    result = run(
        *files,
        "--chain",
        "--strength",
        "0.8,0.3",
        "--kind",
        "lycoris",
        "--base",
        tiny_model,
        "-o",
        out,
        *sampling(folder),
    )
    assert result.exit_code == 0, result.output
    sources = json.loads(read(out)[1]["hnloader.sources"])
    assert [(source["name"], source["strength"]) for source in sources] == [("style", 0.8), ("style", 0.3)]
    again = run(*files, "--chain", "--kind", "lycoris", "--base", tiny_model, "-o", out, *sampling(folder))
    assert "exists" in again.stdout


def test_a_grid_of_images(folder: Path, tiny_model: Path) -> None:
    grid = folder / "grid.png"
    arguments = ("--kind", "lycoris", "--base", tiny_model, "--grid", grid, *sampling(folder))
    result = run(folder / "style.pt", *arguments)
    assert result.exit_code == 0, result.output
    assert "Mean pixel difference from the hypernetwork's images (0 to 255): 0.0 with this file" in result.stdout
    assert grid.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--base"),
        (["--base", "x", "--kind", "dora"], "--kind"),
        (["--base", "x", "--rank", "many"], "--rank"),
        (["--base", "x", "--fidelity", "1.5"], "--fidelity"),
        (["--base", "x", "--bias", "output"], "--bias"),
        (["--kind", "lycoris", "--base", "x", "--rank", "3"], "--rank"),
        (["--kind", "lycoris", "--base", "x", "--bias", "nowhere"], "--bias"),
        (["--base", "x", "--names", "mine"], "--names"),
        (["--model", "x"], "--base"),
        (["--base", "x", "--strength", "much"], "--strength"),
        (["--base", "x", "--strength", "1,2"], "--strength"),
        (["--base", "x", "--grid", "grid.jpg"], "--grid"),
        (["--base", "x", "--chain"], "--out"),
        (["--base", "x", "--out", "x.safetensors", "--chain", "--dry-run"], "--chain"),
    ],
)
def test_usage_errors(folder: Path, arguments: list[str], said: str) -> None:
    result = run(folder / "style.pt", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_wrong_ranks_and_families_print_one_line(folder: Path, tiny_model: Path) -> None:
    result = run(folder / "style.pt", "--base", tiny_model, "--rank", 17, *sampling(folder))
    assert result.exit_code == 1
    assert "17" in result.stdout
    hnloader.save(make_affine((768, 320)), folder / "sd1.pt")
    result = run(folder / "sd1.pt", "--kind", "lycoris", "--base", tiny_model)
    assert result.exit_code == 1
    assert "SD 1 (768)" in result.stdout
    assert not list(folder.glob("*.safetensors"))


def test_missing_models_print_one_line(folder: Path) -> None:
    result = run(folder / "style.pt", "--base", folder / "nothing.safetensors")
    assert result.exit_code == 1
    assert "nothing.safetensors" in result.stderr


def test_refining_states_what_it_gained(folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_refining(monkeypatch)
    out = folder / "x.safetensors"
    options = ("--rank", 2, "--refine", 0.3, "--out", out)
    result = run(folder / "other.pt", "--base", tiny_model, *options, *sampling(folder))
    assert result.exit_code == 0, result.output
    found = json.loads(read(out)[1]["hnloader.refinement"])
    assert f"{found['before']:.1%} before refining, {found['after']:.1%} after" in result.stdout
    assert run(folder / "style.pt", "--base", tiny_model, "--kind", "lycoris", "--refine", 1).exit_code == 2
