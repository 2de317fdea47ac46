"""Fuzz each target in its own process for some minutes.

    python -m lab.fuzz [TARGET ...] --minutes 10 [--keep] [--engine atheris|hypothesis]

atheris (Linux, CPython 3.11 and newer) uses the coverage of hnloader to find new inputs; hypothesis draws them at
random. Inputs that fail are printed and saved to `lab/fuzz/finds/`; `python -m lab.fuzz TARGET --input FILE` runs one
of them again. `--keep` adds inputs that reached new code to `lab/fuzz/corpus/`. Exits with 1 after any failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.fuzz.corpus_archive import read_corpus, unpack_corpus, write_corpus

FINDS = Path(__file__).parent / "finds"
LARGEST_CORPUS = 150  # inputs of each target
NAMES = ("pickle", "changed", "opcodes", "zip", "legacy", "safetensors", "hns", "config", "prompt", "infotext")


def main() -> int:
    """Run the command line."""
    description = "Fuzz everything that reads files and texts from strangers."
    parser = argparse.ArgumentParser(prog="python -m lab.fuzz", description=description)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(NAMES)}")
    parser.add_argument("--minutes", type=float, default=1.0, help="time for each target")
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), default=_best_engine())
    parser.add_argument("--keep", action="store_true", help="add inputs that reached new code to the corpus")
    parser.add_argument("--input", type=Path, help="run one target on this file only")
    options = parser.parse_args()
    for name in options.targets:
        if name not in NAMES:
            parser.error(f"unknown target {name!r}. Expected one of {', '.join(NAMES)}.")
    chosen = options.targets or list(NAMES)
    if options.input is not None:
        from lab.fuzz.targets import TARGETS

        TARGETS[chosen[0]].run(options.input.read_bytes())
        print("passed")
        return 0
    print(f"engine: {options.engine}", flush=True)
    failures = [name for name in chosen if not _fuzz(name, options)]
    return 1 if failures else 0


def _best_engine() -> str:
    return "atheris" if importlib.util.find_spec("atheris") else "hypothesis"


def _fuzz(name: str, options: argparse.Namespace) -> bool:
    """Fuzz one target and print the result; return True if nothing was found."""
    FINDS.mkdir(exist_ok=True)
    began, cpu_began = time.monotonic(), _cpu_seconds()
    with tempfile.TemporaryDirectory(prefix="hnloader-fuzz-") as folder:
        fresh, known = Path(folder) / "fresh", Path(folder) / "known"
        fresh.mkdir()
        known.mkdir()
        unpack_corpus(name, known)
        seconds = str(int(options.minutes * 60))
        program = f"lab.fuzz.run_{options.engine}"
        command = [sys.executable, "-m", program, name, seconds, str(known), str(fresh), str(FINDS)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if options.keep:
            _keep(name, fresh)
    minutes, cpu_minutes = (time.monotonic() - began) / 60, (_cpu_seconds() - cpu_began) / 60
    _report(name, done, f"{minutes:.1f} minutes, {cpu_minutes:.1f} of CPU time")
    return done.returncode == 0


def _report(name: str, done: subprocess.CompletedProcess[str], duration: str) -> None:
    output = done.stdout + done.stderr
    runs = re.findall(r"^#(\d+)\t|number_of_executed_units: (\d+)|executed (\d+) inputs", output, re.MULTILINE)
    count = max((int(number) for found in runs for number in found if number), default=0)
    reached = re.findall(r"cov: (\d+)", output)
    coverage = f", {reached[-1]} branches reached" if reached else ""
    verdict = "nothing found" if done.returncode == 0 else "FOUND"
    print(f"{name:<12} {count:>9,} inputs in {duration}{coverage}: {verdict}", flush=True)
    # The counts are repeated while the target runs; the last ones are the totals.
    compared = {what: count for count, what in re.findall(r"^  compared: ([\d,]+) (.*)$", output, re.MULTILINE)}
    for what, number in compared.items():
        print(f"    {number:>9} {what}", flush=True)
    if done.returncode:
        noise = ("#", "  compared:", "INFO:", "WARNING:", "stat::")
        lines = [line for line in output.splitlines() if not line.startswith(noise)]
        print("\n".join(lines[-40:])[-3000:], flush=True)


def _cpu_seconds() -> float:
    """Return the processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _keep(name: str, fresh: Path) -> None:
    """Add fresh inputs to the corpus, the smallest first, up to `LARGEST_CORPUS`."""
    kept = list(read_corpus(name).values())
    found = sorted((path.read_bytes() for path in fresh.iterdir()), key=lambda data: (len(data), data))
    added = found[: max(LARGEST_CORPUS - len(kept), 0)]
    if added:
        write_corpus(name, [*kept, *added])


if __name__ == "__main__":
    sys.exit(main())
