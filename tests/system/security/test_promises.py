"""docs/security.md names a test for each promise: each exists, and no promise stands without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists() -> None:
    missing = []
    for file, name in NAMED:
        path = ROOT / file
        if not path.is_file() or (name and name not in functions(path)):
            missing.append(f"{file}::{name}")
    assert len(NAMED) > 20 and not missing


def test_every_promise_names_a_test() -> None:
    tables = [block.splitlines() for block in PAGE.split("\n\n") if block.startswith("| Promise")]
    rows = [line for table in tables for line in table[2:]]
    assert len(rows) > 15
    assert not [row for row in rows if "`tests/" not in row.rstrip("|").rpartition("|")[2]]
