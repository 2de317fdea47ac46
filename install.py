"""Install missing packages. Webuis run this at every launch.

It installs only what is missing, and no dependencies, so it never upgrades torch, gradio or other packages of a webui.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

# Module and requirement. Neither has dependencies; PyYAML reads training configurations.
NEEDED = (("safetensors", "safetensors>=0.4.2"), ("yaml", "pyyaml>=6.0"))
OLDEST = (3, 10)


def main() -> None:
    """Install what is missing, or print one line that says what to do."""
    if sys.version_info[:2] < OLDEST:
        wanted, found = ".".join(map(str, OLDEST)), sys.version.split()[0]
        print(f"[hnloader] Requires Python {wanted} or newer; this webui runs {found}.")
        return
    missing = [requirement for module, requirement in NEEDED if importlib.util.find_spec(module) is None]
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "install", "--no-deps", *missing]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        print(f"[hnloader] Could not install {' '.join(missing)}. When online, run: {subprocess.list2cmdline(command)}")


if __name__ == "__main__":
    main()
