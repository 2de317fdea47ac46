"""docs/dev/architecture.md names every module with its purpose, and no other."""

from __future__ import annotations

from lab import module_map
from tests.support.paths import ROOT


def test_page_lists_the_present_modules() -> None:
    page = module_map.PAGE.read_text(encoding="utf-8")
    assert page == module_map.with_tables(page), "run `python -m lab.module_map`"


def test_every_module_has_a_summary() -> None:
    paths = [path for package in module_map.PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [path.relative_to(ROOT).as_posix() for path in paths if not module_map.summary(path)] == []
