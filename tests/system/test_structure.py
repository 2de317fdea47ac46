"""The structure of the code: imports without circles, unique module names, few arguments, tests beside modules."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.support.paths import ROOT

MOST_ARGUMENTS = 8
SOURCES = ("hnloader", "extension", "node_pack", "scripts", "lab")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("hnloader", "extension", "node_pack")
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(module: str) -> Iterator[str]:
    """Yield the modules of the project that a module imports anywhere, under TYPE_CHECKING and in functions too."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


def test_imports_have_no_circles() -> None:
    try:
        TopologicalSorter({module: set(imported(module)) for module in MODULES}).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_the_name_of_a_module_is_unique() -> None:
    paths = defaultdict(list)
    for path in MODULES.values():
        if path.name not in ("__init__.py", "__main__.py"):
            paths[path.name].append(str(path.relative_to(ROOT)))
    assert [each for each in paths.values() if len(each) > 1] == []


def is_command(path: Path) -> bool:
    """Return True for the commands, whose arguments are the options of the command line."""
    return path.is_relative_to(ROOT / "hnloader" / "cli")


def test_functions_have_few_arguments() -> None:
    found = []
    for module, path in MODULES.items():
        if is_command(path):
            continue
        for node in ast.walk(TREES[module]):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = sum(each.arg not in ("self", "cls") for each in given)
                if count > MOST_ARGUMENTS:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {count} arguments")
    assert found == []


def test_each_file_of_tests_is_named_for_its_module() -> None:
    """`tests/<package>/test_<module>[_<aspect>].py`; tests of several modules are in `tests/system`."""
    modules = defaultdict(set)
    for path in [*ROOT.glob("*.py"), *(path for top in SOURCES for path in (ROOT / top).rglob("*.py"))]:
        folder = path.parent.relative_to(ROOT)
        if folder.parts[:1] == ("hnloader",):
            folder = folder.relative_to("hnloader")
        modules[folder].add(path.stem.strip("_"))
    stray = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(ROOT / "tests")
        name = path.stem.removeprefix("test_")
        if folder.parts[:1] != ("system",) and not any(f"{name}_".startswith(f"{one}_") for one in modules[folder]):
            stray.append(str(path.relative_to(ROOT)))
    assert stray == []
