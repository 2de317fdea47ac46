"""The public names: each is on the page of the API and has a complete docstring. The examples of all modules run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hnloader
from tests.support.paths import ROOT

# The page defines what is public.
PAGE = ROOT / "docs" / "reference" / "api.md"
LISTED = re.findall(r"^::: (\S+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def resolved(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# tests/system/test_errors.py checks the errors.
NAMES = {name: resolved(name) for name in LISTED if name != "hnloader.errors"}


def functions() -> Iterator[tuple[str, Any]]:
    """Yield the public functions and methods."""
    for name, value in NAMES.items():
        if inspect.isclass(value):
            for key, member in vars(value).items():
                function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
                if inspect.isfunction(function) and not key.startswith("_"):
                    yield f"{name}.{key}", function
        elif callable(value):
            yield name, value


FUNCTIONS = dict(functions())


def sections(docstring: str) -> dict[str, str]:
    """Return the sections of a docstring in Google's style, by their names."""
    parts = re.split(r"^(Args|Attributes|Returns|Yields|Raises|Warns|Example):\n", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section: str) -> set[str]:
    """Return the names that a section describes; a line may describe several, separated by commas."""
    return {
        name.strip()
        for line in re.findall(r"^    (\w[\w, ]*): ", section, flags=re.MULTILINE)
        for name in line.split(",")
    }


def parameters(function: Callable[..., object]) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "cls")}


def raises(function: Callable[..., object]) -> bool:
    """Return True for a function that contains a `raise`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_a_summary_and_an_example(name: str) -> None:
    docstring = inspect.getdoc(NAMES[name]) or ""
    assert re.match(r"[A-Z`].*\.$", docstring.split("\n\n")[0].replace("\n", " "))
    assert ">>>" in sections(docstring).get("Example", "")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_describes_its_arguments_results_and_errors(name: str) -> None:
    function = FUNCTIONS[name]
    found = sections(inspect.getdoc(function) or "")
    assert described(found.get("Args", "")) == parameters(function)
    result = inspect.signature(function).return_annotation
    assert result in (None, "None", "NoReturn") or "Returns" in found or "Yields" in found
    assert not raises(function) or "Raises" in found


@pytest.mark.parametrize("name", [name for name, value in NAMES.items() if inspect.isclass(value)])
def test_a_public_class_describes_its_fields(name: str) -> None:
    kind = NAMES[name]
    found = sections(inspect.getdoc(kind) or "")
    fields = {field for field in getattr(kind, "__dataclass_fields__", {}) if not field.startswith("_")}
    assert fields <= described(found.get("Args", "")) | described(found.get("Attributes", ""))


# Their examples generate images, train, and build the page.
SLOW = ("hnloader.attention.attach", "hnloader.generation", "hnloader.training", "hnloader.ui")


def modules_with_examples() -> Iterator[Any]:
    """Yield the names of all modules whose docstrings hold examples, also of private functions."""
    for path in sorted((ROOT / "hnloader").rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            yield pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    for test in finder.find(importlib.import_module(name), name, globs={}):
        runner.run(test, out=output.append, clear_globs=False)
    results = runner.summarize(verbose=False)
    assert results.attempted > 0
    assert results.failed == 0, "".join(output)


def test_the_page_lists_the_public_names_of_the_package() -> None:
    assert len(set(LISTED)) == len(LISTED)
    names = {name.removeprefix("hnloader.") for name in NAMES if name.count(".") == 1}
    assert names == set(hnloader.__all__) - set(hnloader.errors.__all__)


@pytest.mark.parametrize("name", [name for name in NAMES if name.count(".") > 1])
def test_a_module_exports_its_public_names(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert attribute in importlib.import_module(module).__all__


def test_names_are_imported_at_their_first_use() -> None:
    assert isinstance(hnloader, ModuleType)
    assert set(hnloader.__all__) <= set(dir(hnloader))
    with pytest.raises(AttributeError, match="nothing"):
        hnloader.nothing  # noqa: B018
