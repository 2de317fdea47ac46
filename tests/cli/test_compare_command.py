"""`hnloader compare` as it is typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hnloader.cli.app import app
from tests.support.tiny_model import save_images

QUICK = ["steps=6", "measure_every=3", "previews.every=0", "previews.steps=2", "learning_rate=1e-3", "batch_size=2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *(str(each) for each in arguments)])
    return result.exit_code, result.stdout, result.stderr


def settings(tiny_model: Path, folder: Path, output: Path) -> list[str]:
    given = [*QUICK, f"model={tiny_model}", f"images={folder}", f"output={output}"]
    return [part for each in given for part in ("--set", each)]


def test_both_are_trained_and_judged_side_by_side(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    given = settings(tiny_model, folder, tmp_path / "style.pt")
    code, out, err = run("-p", "a cat", "-p", "a dog", "--out", tmp_path / "report", *given)
    assert code == 0, err
    assert "style (palette)" in out
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [each["method"] for each in found["contenders"]] == ["hypernetwork", "embedding"]
    for each in found["contenders"]:
        assert each["steps"] == 6
        assert each["size"] == (tmp_path / each["path"]).stat().st_size
        assert each["drift"] >= 0
        assert each["held_out"] > 0
    # Unrelated prompts do not have the embedding's word.
    assert found["contenders"][1]["drift"] == 0
    assert found["contenders"][0]["drift"] > 0
    assert any("leaves unrelated prompts more as they were" in line for line in found["conclusion"])
    assert all(line in err for line in found["conclusion"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "held-out loss" in page
    with Image.open(tmp_path / "report" / "grid.png") as grid:
        assert grid.width > grid.height

    before = (tmp_path / "style-hypernetwork.pt").read_bytes()
    assert run("-p", "a cat", "--out", tmp_path / "again", *given)[0] == 0
    assert (tmp_path / "style-hypernetwork.pt").read_bytes() == before


def test_finished_files_are_taken_as_they_are(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    given = settings(tiny_model, folder, tmp_path / "style.pt")
    assert run("-p", "a cat", "--out", tmp_path / "one", *given)[0] == 0
    files = {method: tmp_path / f"style-{method}.pt" for method in ("hypernetwork", "embedding")}
    bytes_before = {method: path.read_bytes() for method, path in files.items()}
    options = [part for method, path in files.items() for part in (f"--{method}", path)]
    code, _, err = run(
        "-p", "a cat", "--out", tmp_path / "two", *settings(tiny_model, folder, tmp_path / "b.pt"), *options
    )
    assert code == 0, err
    assert {method: path.read_bytes() for method, path in files.items()} == bytes_before
    one, two = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("one", "two"))
    for a, b in zip(one["contenders"], two["contenders"], strict=True):
        assert b["steps"] is None
        assert b["held_out"] == pytest.approx(a["held_out"], rel=1e-5)
        assert b["figures"] == pytest.approx(a["figures"], rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no prompts"),
        (("--prompts", "none.txt"), "none.txt cannot be read"),
        (("-p", "a", "--lpips"), "pip install lpips"),
        (("-p", "a", "--hypernetwork", "none.pt"), "none.pt does not exist"),
        (("-p", "a", "--set", "previews.stepps=1"), "did you mean 'steps'"),
    ],
)
def test_mistakes_get_a_line(
    arguments: tuple[str, ...],
    words: str,
    tiny_model: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    code, _, err = run(*arguments, "--out", tmp_path / "report", *settings(tiny_model, folder, tmp_path / "style.pt"))
    assert code == 1
    assert words in " ".join(err.split())
    assert not (tmp_path / "report").exists()


def test_packages_that_judge_say_how_far_unrelated_prompts_drifted(
    tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("lpips")
    package.LPIPS = lambda net, verbose: torch.nn.L1Loss()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    given = settings(tiny_model, folder, tmp_path / "style.pt")
    code, out, err = run("-p", "a cat", "--lpips", "--out", tmp_path / "report", *given)
    assert code == 0, err
    assert "drift (LPIPS)" in out
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert found["without"]["drift (LPIPS)"] == 0
    hypernetwork, embedding = (each["figures"]["drift (LPIPS)"] for each in found["contenders"])
    assert hypernetwork > embedding == 0
    assert any("more as they were (drift (LPIPS)" in line for line in found["conclusion"])
