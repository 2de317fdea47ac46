"""Run by a webui at every launch: sees that what hnloader needs is there. Fast when nothing is missing.

torch, gradio and everything else that the webui brings are never installed or upgraded: only what is missing is asked
for, and pip is told to install no dependencies.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

# Module and requirement. PyYAML is for training configurations; both have no dependencies.
NEEDED = (("safetensors", "safetensors>=0.4.2"), ("yaml", "pyyaml>=6.0"))
OLDEST = (3, 10)


def main() -> None:
    """Install what is missing; say in one line what can't be had."""
    if sys.version_info[:2] < OLDEST:
        print(
            f"[hnloader] Needs Python {'.'.join(map(str, OLDEST))} or newer; this webui runs {sys.version.split()[0]}."
        )
        return
    missing = [requirement for module, requirement in NEEDED if importlib.util.find_spec(module) is None]
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "install", "--no-deps", *missing]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        print(f"[hnloader] Could not install {' '.join(missing)}. When online, run: {subprocess.list2cmdline(command)}")


if __name__ == "__main__":
    main()
