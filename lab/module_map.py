"""Write the list of modules into docs/dev/architecture.md, from their docstrings: `python -m lab.module_map`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dev" / "architecture.md"
PACKAGES = ("hnloader", "extension", "node_pack", "lab")
BEGIN, END = "<!-- modules: python -m lab.module_map -->", "<!-- end of modules -->"


def summary(path: Path) -> str:
    """Return the summary of a module's docstring without its full stop, for a cell of a table."""
    document = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(document.partition("\n\n")[0].split()).removesuffix(".").replace("|", "\\|")


def tables() -> Iterator[str]:
    """Yield the lines of the list: a heading and a table for each package."""
    for package in PACKAGES:
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            name = ".".join(folder.relative_to(ROOT).parts)
            start = folder / "__init__.py"
            yield f"### `{name}`\n"
            if start.exists() and summary(start):
                yield f"{summary(start)}.\n"
            rows = [(path.stem, summary(path)) for path in sorted(folder.glob("*.py")) if path != start]
            if rows:
                yield "| Module | Purpose |\n| --- | --- |"
                yield "\n".join(f"| `{module}` | {purpose} |" for module, purpose in rows) + "\n"


def with_tables(page: str) -> str:
    """Return the page with the present list between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    listed = "\n".join(tables())
    return f"{before}{BEGIN}\n\n{listed}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
