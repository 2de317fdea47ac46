"""docs/dev/architecture.md names every module, and every module that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "dev" / "architecture.md"
PACKAGES = ("hnloader", "extension", "lab")
# A line of a module table: "| `single` | Converts one file. |" below a heading such as "### `hnloader.conversion`".
_HEADING = re.compile(r"^#+ `([\w.]+)`")
_ROW = re.compile(r"^\| `(\w+)` \| (.+) \|$")


def named() -> set[str]:
    """Return the modules that the page names."""
    found, package = set(), ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := _HEADING.match(line):
            package = heading[1]
            found.add(package)
        elif line.startswith("#"):
            package = ""
        elif package and (row := _ROW.match(line)):
            found.add(f"{package}.{row[1]}")
    return found


def existing() -> set[str]:
    """Return the modules of the packages, a package under its own name."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            words = path.relative_to(ROOT).with_suffix("").parts
            found.add(".".join(words[:-1] if words[-1] == "__init__" else words))
    return found


def test_page_names_every_module_and_no_other() -> None:
    assert sorted(existing() - named()) == [], "modules without a line in docs/dev/architecture.md"
    assert sorted(named() - existing()) == [], "lines of docs/dev/architecture.md without a module"
