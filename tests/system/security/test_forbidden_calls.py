"""Nothing in the package can run what a file says: no unpickling, eval, exec, or loading of YAML objects, anywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PLACES = [ROOT / name for name in ("hnloader", "extension", "scripts", "install.py")]
# By the name that they have where they are defined, however a module imports them.
FORBIDDEN = {
    "eval",
    "exec",
    "__import__",
    "builtins.eval",
    "builtins.exec",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "_pickle.load",
    "_pickle.loads",
    "_pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "dill.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.serialization.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "os.system",
    "os.popen",
}


def python_files() -> list[Path]:
    files = [path for place in PLACES for path in ([place] if place.is_file() else place.rglob("*.py"))]
    return sorted(files)


def forbidden_uses(code: str) -> list[tuple[int, str]]:
    """(line, name) of each use, called or not; through `import ... as` and `from ... import ... as` as well."""
    tree = ast.parse(code)
    names: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in FORBIDDEN:
                    found.append((node.lineno, f"{node.module}.{alias.name}"))

    def full_name(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{full_name(node.value)}.{node.attr}"
        return "?"

    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and full_name(node) in FORBIDDEN:
            found.append((node.lineno, full_name(node)))
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                given = keyword.arg in ("shell", "allow_pickle", "trust_remote_code")
                if given and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                    found.append((node.lineno, f"{keyword.arg}="))
    return found


def test_package_has_no_forbidden_calls() -> None:
    files = python_files()
    assert len(files) > 100
    uses = {path: forbidden_uses(path.read_text(encoding="utf-8")) for path in files}
    assert not [f"{path.relative_to(ROOT)}:{line}: {name}" for path, found in uses.items() for line, name in found]


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "f = exec",
        "import pickle\npickle.loads(b'')",
        "import pickle as p\nx = p.load",
        "from pickle import loads",
        "from pickle import loads as innocent",
        "def f():\n    import torch as t\n    t.load('x', weights_only=True)",
        "import yaml\nyaml.load('', Loader=yaml.SafeLoader)",
        "from torch import load as read",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import os\nos.system('x')",
        "from builtins import eval as e",
    ],
)
def test_search_finds_forbidden_calls(code: str) -> None:
    assert forbidden_uses(code)


@pytest.mark.parametrize(
    "code",
    ["model.eval()", "import ast\nast.literal_eval('1')", "import yaml\nyaml.safe_load('')", "import json\njson.load"],
)
def test_search_accepts_similar_names(code: str) -> None:
    assert not forbidden_uses(code)
