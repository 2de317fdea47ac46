"""Every error and warning lives in `hnloader.errors` and has a stable code."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

import hnloader
from hnloader import errors
from tests.support.paths import ROOT

# Signals between two modules, which the second one turns into an error or an exit code: no caller sees them.
SIGNALS = {"OutputLostError", "MalformedPickleError"}
CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, (Exception, Warning))]


def test_each_error_is_public_and_has_a_code_of_its_own() -> None:
    assert {each.__name__ for each in CLASSES} == set(errors.__all__)
    codes = [vars(each)["code"] for each in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("name", errors.__all__)
def test_each_error_is_reached_from_the_package(name: str) -> None:
    assert getattr(hnloader, name) is getattr(errors, name)
    assert name in hnloader.__all__


def test_no_other_module_defines_a_public_error() -> None:
    found = []
    for folder in ("hnloader", "extension"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    bases = {ast.unparse(base) for base in node.bases}
                    if node.name not in SIGNALS and any(
                        re.search(r"(Error|Exception|Warning)$", base) for base in bases
                    ):
                        found.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert [each for each in found if not each.startswith("hnloader/errors.py")] == []
