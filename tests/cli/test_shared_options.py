from __future__ import annotations

from pathlib import Path

import pytest

from hnloader.cli.shared_options import read_hypernet
from hnloader.prompt import BlockWeight, Tag


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("ink", Tag("ink")),
        ("ink.pt:0.8", Tag("ink.pt", 0.8)),
        ("ink:0.8:block=up+mid@0.5,v=0", Tag("ink", 0.8, (BlockWeight("up"), BlockWeight("mid", 0.5)), v=0.0)),
        (r"C:\styles\ink.pt:0.8", Tag(r"C:\styles\ink.pt", 0.8)),
        ("C:/styles/ink.pt", Tag("C:/styles/ink.pt")),
        ("a:b.pt", Tag("a:b.pt")),
        ("a:b.pt:0.5:end=0.9", Tag("a:b.pt", 0.5, end=0.9)),
    ],
)
def test_hypernet_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, tag: Tag) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b.pt").touch()
    assert read_hypernet(text) == tag
