"""`import hnloader` needs torch and safetensors alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import GOLDENS

GOLDEN = GOLDENS / "relu_121.pt"
OTHERS = ("diffusers", "transformers", "accelerate", "peft", "PIL", "rich", "typer", "click", "gradio", "yaml")


def run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loading_and_saving_imports_nothing_else(tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import hnloader\n"
        "hn = hnloader.load(sys.argv[1]); hnloader.inspect(sys.argv[1]).to_dict()\n"
        "for suffix in ('.pt', '.safetensors'): hnloader.save(hn, sys.argv[2] + suffix)\n"
        "hn(torch.zeros(1, 2, 32))\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(added - set(sys.stdlib_module_names)))\n"
    )
    added = set(run(program, GOLDEN, tmp_path / "saved").split())
    assert {"hnloader", "safetensors"} <= added
    assert not added & set(OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize("blocked", ["numpy", "diffusers"])
def test_it_works_without(blocked: str, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules[sys.argv[3]] = None  # importing it fails from here on\n"
        "import hnloader, torch\n"
        "hn = hnloader.load(sys.argv[1])\n"
        "hnloader.save(hn, sys.argv[2])\n"
        "print(hnloader.load(sys.argv[2])(torch.zeros(1, 2, 32))[0].shape[-1])\n"
    )
    assert run(program, GOLDEN, tmp_path / "saved.safetensors", blocked).splitlines()[-1] == "32"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocked", "code", "named"),
    [("yaml", "missing-extra", "PyYAML"), ("numpy", "missing-extra", "numpy"), ("diffusers", "dataset", "")],
)
def test_training_names_the_missing_package(blocked: str, code: str, named: str, tmp_path: Path) -> None:
    """The name `hnloader.train` exists without the package, and a run reads the images before it needs diffusers."""
    program = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from hnloader import *\n"
        "import hnloader\n"
        "try:\n"
        "    hnloader.train({'model': sys.argv[2], 'images': sys.argv[2], 'output': 'a.pt'}\n"
        "                   if sys.argv[1] != 'yaml' else sys.argv[2] + '/config.yaml')\n"
        "except hnloader.HypernetworkError as error:\n"
        "    print(error.code, error)\n"
    )
    (tmp_path / "config.yaml").write_text("steps: 1")
    (tmp_path / "a.ppm").write_text("")
    said = run(program, blocked, tmp_path)
    assert said.startswith(f"{code} ")
    assert all(fact in said for fact in ((named, "'.[train]'") if named else (str(tmp_path),)))


@pytest.mark.slow
def test_naming_train_imports_no_more_than_the_rest() -> None:
    program = "import sys, hnloader\nhnloader.train\nprint(*{name.partition('.')[0] for name in sys.modules})\n"
    assert not set(run(program).split()) & set(OTHERS)
