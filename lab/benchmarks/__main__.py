"""Run every benchmark of this folder in turn, each in its own process.

    python -m lab.benchmarks [--quick] [--threads N] [--write-docs]

--write-docs also writes the output of some into docs/dev/speed.md, the plots into docs/images, and the sentence on
speed into README.md. JSON files and plots stay in lab/benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab.benchmarks import _report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "lab" / "benchmarks" / "results"
# --write-docs writes the output of these; the documentation has separate sections for the other benchmarks.
DOCUMENTED = ("step_time", "memory_kept", "attach_time", "growth")
# These take the shared options.
WITH_OPTIONS = (*DOCUMENTED, "train_time")
PLOTS = ("speed-steps", "speed-growth")


def names() -> list[str]:
    """Return the benchmarks of this folder, those with options first."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    return [*WITH_OPTIONS, *(name for name in found if name not in WITH_OPTIONS)]


def run(name: str, options: Sequence[str]) -> str | None:
    """Run a benchmark, show its output, and return it; None if it failed."""
    arguments = [*options, "--results", str(RESULTS)] if name in WITH_OPTIONS else []
    command = [sys.executable, "-m", f"lab.benchmarks.{name}", *arguments]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines).strip() if process.returncode == 0 else None


def write_docs(sections: Sequence[str], head: str) -> None:
    """Write the output into the documentation."""
    page = ROOT / "docs" / "dev" / "speed.md"
    text = "\n\n".join([head, *sections])
    _report.write(page, _report.put_between(page.read_text(encoding="utf-8"), "measured", text))
    readme = ROOT / "README.md"
    summary = json.loads((RESULTS / "step_time.json").read_text(encoding="utf-8"))["summary"]
    _report.write(readme, _report.put_between(readme.read_text(encoding="utf-8"), "speed", summary))
    for plot in PLOTS:
        shutil.copyfile(RESULTS / f"{plot}.svg", ROOT / "docs" / "images" / f"{plot}.svg")


def main() -> int:
    """Return 0 if every benchmark succeeded."""
    parser = argparse.ArgumentParser(description="Run every benchmark.")
    parser.add_argument("--quick", action="store_true", help="few rounds and models, only as a smoke test")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    parser.add_argument("--write-docs", action="store_true", help="write docs/dev/speed.md, its plots and README")
    options = parser.parse_args()
    if options.quick and options.write_docs:
        parser.error("--quick is too short for the documentation. Run without it.")
    passed = ["--quick"] if options.quick else []
    passed += ["--threads", str(options.threads)] if options.threads else []

    begin = time.perf_counter()
    head = f"Measured on: {_report.machine(options.threads)}."
    print(head, flush=True)
    sections: list[str] = []
    failed = []
    for name in names():
        print(f"\n== {name}", flush=True)
        section = run(name, passed)
        if section is None:
            failed.append(name)
        elif name in DOCUMENTED:
            sections.append(section)
    print(f"\n{(time.perf_counter() - begin) / 60:.1f} minutes")
    if failed:
        print(f"failed: {', '.join(failed)}; the documentation was not changed", file=sys.stderr)
        return 1
    if options.write_docs:
        write_docs(sections, head)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
