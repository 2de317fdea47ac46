"""The house style of code and documents, as far as a machine can check it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import style

FILES = style.files()


def test_every_part_of_the_project_is_checked() -> None:
    parts = {path.parts[0] for path in FILES}
    assert {"hnloader", "extension", "scripts", "lab", "tests", "docs", "examples", "README.md", "install.py"} <= parts


def test_no_file_breaks_a_rule() -> None:
    assert [str(finding) for path in FILES for finding in style.check(path)] == []


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("a.py", '"""Draw the picture."""', "write image"),
        ("a.py", "# The file is no hypernetwork.", "say what it is"),
        ("a.py", "held_out = 1", "write validation"),
        ("a.py", "def prove(): ...", "write verify"),
        ("a.py", 'def f():\n    """Whether it fits."""', "question word"),
        ("a.py", "raise ValueError(f'the width {width} is unknown')", "lower case"),
        ("a.py", "raise ValueError('Unknown width')", "full stop"),
        ("a.md", "The file is told to the user.", "active voice"),
        ("a.md", "The behaviour is the same.", "American spelling"),
        ("a.md", "One two three. " + "word " * (style.LONGEST_SENTENCE + 1) + "end.", "words"),
    ],
)
def test_what_breaks_a_rule_is_found(
    name: str, text: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "ROOT", tmp_path)
    (tmp_path / name).write_text(text + "\n")
    findings = [str(finding) for finding in style.check(Path(name))]
    assert any(rule in finding for finding in findings), findings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", '"""Draw the image."""\n\nraise ValueError(f"Unknown width {width}. Known widths: {known}.")'),
        ("a.md", "Write `is no picture` in code, or\n\n    prove it\n\nin a block."),
    ],
)
def test_sound_text_has_no_findings(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "ROOT", tmp_path)
    (tmp_path / name).write_text(text + "\n")
    assert [str(finding) for finding in style.check(Path(name))] == []
