"""Start a real ComfyUI with the node pack, run the checks, and print a table.

This requires a working checkout of ComfyUI and its Python. Models with random weights, settings and outputs are in a
temporary folder; the checkout stays unchanged. The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.checking import outcome

from . import comfyui_checks as checks
from . import comfyui_examples
from . import comfyui_page as page
from .comfyui_server import HERE, ComfyUI, make_data


def main() -> int:
    """Run all checks."""
    parser = argparse.ArgumentParser(prog="python -m lab.real_hosts.comfyui", description=__doc__)
    parser.add_argument("checkout", type=Path, help="ComfyUI's folder")
    parser.add_argument("--python", type=Path, help="its Python; default: venv/bin/python in its folder")
    parser.add_argument("--only", default="", help="run checks whose names contain one of these: a,b,c")
    parser.add_argument(
        "--checkpoints", type=Path, help="folder for the random checkpoints (3 GB), kept for the next run"
    )
    parser.add_argument("--examples", action="store_true", help="make the example workflows instead")
    parser.add_argument("--keep", type=Path, help="use this new folder, and keep it")
    parser.add_argument("arguments", nargs="*", help="additional arguments for ComfyUI, after --")
    given = parser.parse_args()
    checkout = given.checkout.resolve()
    python = (given.python or checkout / "venv" / "bin" / "python").absolute()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoints = given.checkpoints or Path(temporary) / "checkpoints"
        if not (checkpoints / "flux.safetensors").exists():
            command = [str(python), str(HERE / "random_checkpoints.py"), str(checkpoints.absolute())]
            subprocess.run(command, cwd=checkout, check=True)
        data = make_data(given.keep or Path(temporary) / "comfy ui", checkpoints)
        checks.fill(data / "models")
        host = ComfyUI(checkout, python, data.resolve(), given.arguments)
        if given.examples:
            with host, page.browser(host) as user:
                print(*comfyui_examples.make(user), sep="\n")
            return 0
        results = list(run(host, given.only))
    failed = results.count(False)
    print(f"{len(results)} checks, {failed} failed")
    return 1 if failed else 0


def run(host: ComfyUI, only: str) -> Iterator[bool]:
    """Yield the outcome of each check."""
    wanted = only.split(",")
    with host:
        stats = host.get("/system_stats")["system"]
        print(
            f"ComfyUI {stats['comfyui_version']}, torch {stats['pytorch_version']}: started in {host.seconds:.0f} s",
            flush=True,
        )
        for name, check in checks.CHECKS.items():
            if any(part in name for part in wanted):
                yield outcome(name, lambda check=check: check(host))
        if any(part in name for name in page.PAGE for part in wanted):
            with page.browser(host) as user:
                for name, check in page.PAGE.items():
                    if any(part in name for part in wanted):
                        yield outcome(name, lambda check=check: page.tried(user, check, host.data / "failed.png"))
        if any(part in "console" for part in wanted):
            yield outcome("console", lambda: checks.quiet(host))


if __name__ == "__main__":
    sys.exit(main())
