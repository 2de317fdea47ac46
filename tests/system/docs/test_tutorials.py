"""The tutorials run as a reader runs them: the commands and the Python code of each page, in order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_language_models import save_language_model

ROOT = Path(__file__).parents[3]
TUTORIALS = ROOT / "docs" / "tutorials"
# Needs a webui; the tests of the extension cover it.
WITHOUT_WEBUI = sorted(path.stem for path in TUTORIALS.glob("*.md") if path.stem != "webui")
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def script(page: str) -> str:
    """Return the code blocks of a page as one shell script."""
    parts = []
    for kind, code in _BLOCK.findall((TUTORIALS / f"{page}.md").read_text(encoding="utf-8")):
        parts.append(code if kind == "sh" else f"python - <<'PYTHON'\n{code}PYTHON\n")
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITHOUT_WEBUI)
def test_tutorial_runs_as_written(page: str, tmp_path: Path) -> None:
    (tmp_path / "hnloader").symlink_to(ROOT)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    # As few training steps as possible.
    commands = re.sub(r"--steps \d+", "", script(page))
    commands = re.sub(r"^hnloader train ", "hnloader train --steps 2 ", commands, flags=re.MULTILINE)
    if page == "a-language-model-in-your-style":  # a tiny model in place of a package with a real one
        save_language_model(tmp_path / "llm")
        commands = re.sub(r"^pip .*$", "", commands, flags=re.MULTILINE)
        commands = re.sub(r"^export MODEL=.*$", "export MODEL=./llm", commands, flags=re.MULTILINE)
        commands = commands.replace("path.parent, gguf_file=path.name", "path")
    if page == "convert-a-folder":  # two commands report the file that fails by their exit codes
        commands = re.sub(r"^(hnloader (?:inspect|convert) .*)$", r"\1 || test $? -le 3", commands, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    for name in re.findall(r"--out (\S+\.png)|(\w[\w.-]*\.csv)|save\(\"(\S+)\"\)", commands):
        assert (tmp_path / next(filter(None, name))).stat().st_size > 0
