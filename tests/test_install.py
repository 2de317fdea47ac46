"""install.py in a child process, as in a webui, with a pip that only records its arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Packages of the webuis, which must not change.
HOSTS_OWN = ("torch", "gradio", "pydantic", "transformers", "numpy", "pillow", "fastapi")
PIP = """
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
print("pip's own output")
sys.exit({status})
"""


class Host:
    """A webui's environment, which has the modules in `has`."""

    def __init__(self, folder: Path, *, has: tuple[str, ...], pip_fails: bool = False) -> None:
        self.log = folder / "log"
        for name in (*has, "pip"):
            (folder / "path" / name).mkdir(parents=True)
            (folder / "path" / name / "__init__.py").write_text("")
        (folder / "path" / "pip" / "__main__.py").write_text(PIP.format(log=str(self.log), status=int(pip_fails)))
        self.environment = {**os.environ, "PYTHONPATH": str(folder / "path"), "PIP_NO_INDEX": "1"}

    def launch(self, *start: str) -> str:
        """Run it and return its output. `-S` hides the packages of this Python."""
        command = [sys.executable, "-S", *(start or (str(ROOT / "install.py"),))]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout

    @property
    def calls(self) -> list[list[str]]:
        """Return the arguments of each call of pip."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


def test_nothing_missing_imports_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path, has=("safetensors", "yaml"))
    assert host.launch() == ""
    assert host.calls == []
    program = f"""
import runpy, subprocess, sys
subprocess.run = None
runpy.run_path({str(ROOT / "install.py")!r}, run_name="__main__")
print(sorted({{"torch", "safetensors", "yaml", "hnloader", "pip"}} & set(sys.modules)))
"""
    assert host.launch("-c", program) == "[]\n"


@pytest.mark.parametrize(
    ("has", "wanted"),
    [
        (("safetensors",), ["pyyaml>=6.0"]),
        (("yaml",), ["safetensors>=0.4.2"]),
        ((), ["safetensors>=0.4.2", "pyyaml>=6.0"]),
    ],
)
def test_only_missing_packages_are_installed_without_dependencies(
    has: tuple[str, ...], wanted: list[str], tmp_path: Path
) -> None:
    host = Host(tmp_path, has=has)
    assert host.launch() == ""
    (call,) = host.calls
    assert call == ["install", "--no-deps", *wanted]
    assert not any(name in part for part in call for name in HOSTS_OWN)


def test_pinned_old_release_is_kept(tmp_path: Path) -> None:
    """AUTOMATIC1111 1.7 pins safetensors 0.3.1, which is sufficient."""
    host = Host(tmp_path, has=("safetensors", "yaml"))
    information = tmp_path / "path" / "safetensors-0.3.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: safetensors\nVersion: 0.3.1\n")
    assert host.launch() == ""
    assert host.calls == []


def test_offline_prints_one_line_with_the_command(tmp_path: Path) -> None:
    output = Host(tmp_path, has=("yaml",), pip_fails=True).launch()
    (line,) = output.splitlines()
    assert line.startswith("[hnloader] Could not install safetensors>=0.4.2. When online, run: ")
    assert line.endswith("-m pip install --no-deps safetensors>=0.4.2")
    assert sys.executable in line


def test_old_python_is_reported(tmp_path: Path) -> None:
    host = Host(tmp_path, has=())
    program = f"""
import runpy, sys
class Version(tuple): pass
sys.version_info = Version((3, 9, 18))
sys.version = "3.9.18 (main)"
runpy.run_path({str(ROOT / "install.py")!r}, run_name="__main__")
"""
    (line,) = host.launch("-c", program).splitlines()
    assert "3.10" in line and "3.9.18" in line
    assert host.calls == []
