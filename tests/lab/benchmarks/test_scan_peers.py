from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.benchmarks import scan_peers


def test_table_counts_outcomes_by_kind() -> None:
    kinds = {"a": "runs", "b": "runs", "c": "names", "d": "broken", "e": "sound", "f": "sound"}
    found = {"a": "found", "b": "clean", "c": "error", "d": "clean", "e": "found", "f": "clean"}
    head, _, row = scan_peers.report(kinds, {"x": (1.26, found)}).splitlines()  # type: ignore[dict-item]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["x",
        "1", "0", "1", "0", "1", "0", "1", "1", "0", "1.3",
    ]  # fmt: skip
    assert "of 2 that run" in head and "of 2 sound" in head


def test_only_hnloader_without_peers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def few(folder: Path, canary: Path) -> tuple[dict[str, str], dict[str, str]]:
        (folder / "1").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
        (folder / "2").write_bytes(b"hello")
        return {"1": "runs", "2": "broken"}, {"1": "a call", "2": "text"}

    monkeypatch.setattr(scan_peers, "write_files", few)
    monkeypatch.setattr(sys, "argv", ["scan_peers", "--missed"])
    scan_peers.main()
    out = capsys.readouterr().out
    assert "hnloader scan" in out and "hnloader scan: none" in out
