from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import hnloader.demo.grid
import hnloader.demo.stories
from hnloader.cli import demo_command
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


TOLD = {"plain": ["Mara waits."] * 3, "past": ["Mara waited near the old [barn]."] * 3}


def test_stories_in_a_pipe_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hnloader.demo.stories, "tell_stories", lambda: TOLD)
    result = CliRunner().invoke(app, ["demo", "--text"])
    assert result.exit_code == 0, result.output
    first, plain, past, blank, *_ = result.stdout.splitlines()
    assert (first, plain, past, blank) == (
        hnloader.demo.stories.PROMPTS[0],
        "plain: Mara waits.",
        "past: Mara waited near the old [barn].",
        "",
    )


@pytest.mark.parametrize(("width", "side_by_side"), [(80, True), (40, False), (20, False)])
def test_stories_in_a_terminal(width: int, side_by_side: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hnloader.demo.stories, "tell_stories", lambda: TOLD)
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width, markup=False, highlight=False, no_color=True)
    monkeypatch.setattr(demo_command, "stdout", lambda: console)
    assert CliRunner().invoke(app, ["demo", "--text"]).exit_code == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in written.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    assert any("Mara waits." in line and "Mara waited" in line for line in lines) is side_by_side
    assert "barn" in " ".join(lines)
