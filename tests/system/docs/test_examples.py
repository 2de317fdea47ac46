"""Every example runs on the bundled pipeline, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))
# As few training steps as possible.
ARGUMENTS = {"train_style.py": ["2"]}
WRITES = {
    "apply.py": {"outline-0.0.png", "outline-0.5.png", "outline-1.0.png"},
    "chain_and_blocks.py": {"chain.png"},
    "convert_folder.py": {"converted/halftone.safetensors", "converted/outline.safetensors"},
    "inspect_files.py": set(),
    "train_style.py": {"blueprint.png", "blueprint.pt"},
}


def run(command: list[str], folder: Path) -> str:
    """Run Python with these arguments in a folder, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_its_files(name: str, tmp_path: Path) -> None:
    printed = run([str(EXAMPLES / name), *ARGUMENTS.get(name, ())], tmp_path)
    assert printed
    assert all((tmp_path / file).stat().st_size > 0 for file in WRITES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_cells_run_in_order(name: str, tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n".join(cell for cell in cells if not cell.startswith("%pip"))
    run(["-c", code], tmp_path)


def test_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in [*SCRIPTS, *NOTEBOOKS] if f"]({name})" not in index] == []
