"""docs/dev/architecture.md names every module with its purpose, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from lab import module_map
from tests.support.paths import ROOT


def test_page_lists_the_present_modules() -> None:
    page = module_map.PAGE.read_text(encoding="utf-8")
    assert page == module_map.with_tables(page), "run `python -m lab.module_map`"


def test_every_module_has_a_summary() -> None:
    paths = [path for package in module_map.PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [path.relative_to(ROOT).as_posix() for path in paths if not module_map.summary(path)] == []


def source_of(name: str) -> Path | None:
    """Return the file of a module, given as in the text: `formats.source`, `extension.startup`."""
    words = name.split(".")
    folder = ROOT if words[0] in module_map.PACKAGES else ROOT / "hnloader"
    candidates = (folder.joinpath(*words).with_suffix(".py"), folder.joinpath(*words, "__init__.py"))
    return next((path for path in candidates if path.is_file()), None)


def test_every_module_of_the_table_of_messages_exists() -> None:
    section = module_map.PAGE.read_text(encoding="utf-8").partition("## From a message")[2].partition("\n## ")[0]
    names = [name for row in re.findall(r"^\|.*\|(.*)\|$", section, re.M)[2:] for name in re.findall("`(.+?)`", row)]
    assert len(names) > 40
    assert [name for name in names if source_of(name) is None] == []


def test_modules_and_names_in_the_text_exist() -> None:
    text = module_map.PAGE.read_text(encoding="utf-8").partition(module_map.BEGIN)[0]
    packages = {path.stem for path in (ROOT / "hnloader").iterdir()} | {*module_map.PACKAGES}
    names = [name for name in re.findall(r"`(\w+\.[\w.]+)`", text) if name.partition(".")[0] in packages]
    assert len(names) > 50
    missing = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        inner = source_of(module)
        defined = inner is not None and re.search(rf"(?:def|class) {attribute}\b", inner.read_text(encoding="utf-8"))
        if source_of(name) is None and not defined:
            missing.append(name)
    assert missing == []
