"""Fuzz for some minutes, each target in a process of its own.

    python -m lab.fuzz [TARGET ...] --minutes 10 [--keep] [--engine atheris|hypothesis]

With atheris (Linux, CPython 3.11 and newer) the fuzzing is guided by what of hnloader each input reaches; without it,
hypothesis draws inputs at random. `--minutes` is for each target. What fails is written to `lab/fuzz/finds/` and
printed; `python -m lab.fuzz TARGET --input FILE` runs one such file again. With `--keep`, inputs that reached something
new go into `lab/fuzz/corpus/`. Exits with 1 when anything was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent
CORPUS, FINDS = ROOT / "corpus", ROOT / "finds"
LARGEST_CORPUS = 150  # inputs of each target
NAMES = ("pickle", "changed", "opcodes", "zip", "legacy", "safetensors", "hns", "config", "prompt", "infotext")


def main() -> int:
    """Run what the command line asks for."""
    description = "Fuzz everything that reads strangers' files."
    parser = argparse.ArgumentParser(prog="python -m lab.fuzz", description=description)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), default=_best_engine())
    parser.add_argument("--keep", action="store_true", help="add to the corpus what reached something new")
    parser.add_argument("--input", type=Path, help="run one target on this file alone")
    options = parser.parse_args()
    for name in options.targets:
        if name not in NAMES:
            parser.error(f"there is no target {name!r}; {', '.join(NAMES)} were expected")
    chosen = options.targets or list(NAMES)
    if options.input is not None:
        from lab.fuzz.targets import TARGETS

        TARGETS[chosen[0]].run(options.input.read_bytes())
        print("nothing wrong with it")
        return 0
    print(f"engine: {options.engine}", flush=True)
    return 1 if sum(_fuzz(name, options) for name in chosen) else 0


def _best_engine() -> str:
    return "atheris" if importlib.util.find_spec("atheris") else "hypothesis"


def _fuzz(name: str, options: argparse.Namespace) -> int:
    """Fuzz one target and print a line on it; 1 when something was found."""
    FINDS.mkdir(exist_ok=True)
    began, used = time.monotonic(), _cpu_seconds()
    with tempfile.TemporaryDirectory(prefix="hnloader-fuzz-") as folder:
        fresh = Path(folder) / "fresh"
        fresh.mkdir()
        seconds = str(int(options.minutes * 60))
        command = [sys.executable, "-m", f"lab.fuzz.run_{options.engine}", name, seconds, str(fresh), str(FINDS)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if options.keep and options.engine == "atheris":
            _keep(name, fresh)
    said = done.stdout + done.stderr
    runs = re.findall(r"^#(\d+)\t|number_of_executed_units: (\d+)|executed (\d+) inputs", said, re.MULTILINE)
    count = max((int(number) for found in runs for number in found if number), default=0)
    reached = re.findall(r"cov: (\d+)", said)
    minutes, of_cpu = (time.monotonic() - began) / 60, (_cpu_seconds() - used) / 60
    verdict = "nothing found" if done.returncode == 0 else "FOUND"
    coverage = f", {reached[-1]} branches reached" if reached else ""
    took = f"{minutes:.1f} minutes, {of_cpu:.1f} of CPU time"
    print(f"{name:<12} {count:>9,} inputs in {took}{coverage}: {verdict}", flush=True)
    # It says so again and again; what is said last about each is what counts.
    for what, count in {w: c for c, w in re.findall(r"^  compared: ([\d,]+) (.*)$", said, re.MULTILINE)}.items():
        print(f"    {count:>9} {what}", flush=True)
    if done.returncode:
        told = [
            line
            for line in said.splitlines()
            if not line.startswith(("#", "  compared:", "INFO:", "WARNING:", "stat::"))
        ]
        print("\n".join(told[-40:])[-3000:], flush=True)
    return 1 if done.returncode else 0


def _cpu_seconds() -> float:
    """What the processes that were started here, and have ended, took of the processors."""
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took.ru_utime + took.ru_stime


def _keep(name: str, fresh: Path) -> None:
    """Add inputs that reached something new to the corpus, the smallest first, until it has `LARGEST_CORPUS`."""
    known = CORPUS / name
    known.mkdir(parents=True, exist_ok=True)
    free = LARGEST_CORPUS - len(list(known.iterdir()))
    found = sorted(fresh.iterdir(), key=lambda path: (path.stat().st_size, path.name))
    for path in found[: max(free, 0)]:
        shutil.copyfile(path, known / path.name[:16])


if __name__ == "__main__":
    sys.exit(main())
