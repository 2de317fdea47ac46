from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import hnloader.demo.grid
from hnloader.cli.app import app
from hnloader.demo.grid import PROMPTS
from hnloader.errors import HypernetworkError


def test_path_of_the_grid_and_its_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(out: Path, *, progress) -> Path:
        for done in (1, 2):
            progress(done, 2)
        path = out / "demo.png"
        path.parent.mkdir()
        path.touch()
        return path

    monkeypatch.setattr(hnloader.demo.grid, "render_demo", render)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "here")])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'here' / 'demo.png'}\n"
    assert f"{len(PROMPTS)} prompts" in result.stderr and "strengths 0, 0.5, 1" in result.stderr


def test_a_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(out: Path, *, progress) -> Path:
        raise HypernetworkError(f"{out}: No space left on device")

    monkeypatch.setattr(hnloader.demo.grid, "render_demo", render)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {tmp_path}: No space left on device\n"
