"""Run by a webui at every launch: sees that what hnloader needs is there. Fast when nothing is missing.

torch, gradio and everything else that the webui brings are never installed or upgraded: pip is told to install no
dependencies.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

# Module and requirement. PyYAML is for training configurations; both have no dependencies.
NEEDED = (("safetensors", "safetensors>=0.4.2"), ("yaml", "pyyaml>=6.0"))


def main() -> None:
    """Install what is missing; say in one line what can't be had."""
    missing = [requirement for module, requirement in NEEDED if importlib.util.find_spec(module) is None]
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "install", "--no-deps", *missing]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        print(f"[hnloader] Could not install {' '.join(missing)}. When online, run: {' '.join(command)}")


main()
