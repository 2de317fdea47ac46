"""The comparison on a real language model, here on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.text.compare_methods import RATES, main
from tests.support.small_language_models import save_language_model


@pytest.mark.slow
def test_the_table_has_a_line_for_each_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--work", str(tmp_path), "--model", str(save_language_model(tmp_path / "llm")), "--steps", "2"]
    assert main([*given, "--seeds", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == ["method", *RATES]
    files = list(tmp_path.glob("*.json"))
    assert len(files) == len(RATES) * 4
    assert all(json.loads(file.read_text())["validation_loss"] > 0 for file in files)
    before = {file: file.stat().st_mtime_ns for file in files}
    assert main([*given, "--seeds", "2"]) == 0  # resumes
    assert {file: file.stat().st_mtime_ns for file in files} == before
