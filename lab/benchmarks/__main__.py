"""Runs every benchmark of this folder, one after the other, each in a process of its own.

    python -m lab.benchmarks [--quick] [--threads N] [--write-docs]

With --write-docs the output also goes into docs/dev/speed.md, the plots into docs/images, and the line on speed into
README.md. JSON files and plots are left in lab/benchmarks/results.
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
# These take the options and print Markdown; the others print lines.
MARKDOWN = ("step_time", "attach_time", "growth", "train_time")
PLOTS = ("speed-steps", "speed-growth")


def names() -> list[str]:
    """Every benchmark of this folder, those of speed first."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    return [*MARKDOWN, *(name for name in found if name not in MARKDOWN)]


def run(name: str, options: Sequence[str]) -> str | None:
    """Run one, show what it prints as it comes, and return it as Markdown; None when it failed."""
    arguments = [*options, "--results", str(RESULTS)] if name in MARKDOWN else []
    command = [sys.executable, "-m", f"lab.benchmarks.{name}", *arguments]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    text = "".join(lines).strip()
    if process.returncode != 0:
        return None
    return text if name in MARKDOWN else f"### {name}\n\n```\n{text}\n```"


def write_docs(sections: Sequence[str], head: str) -> None:
    """Put the output where the documentation shows it."""
    page = ROOT / "docs" / "dev" / "speed.md"
    text = "\n\n".join([head, *sections])
    _report.write(page, _report.put_between(page.read_text(encoding="utf-8"), "measured", text))
    readme = ROOT / "README.md"
    summary = json.loads((RESULTS / "step_time.json").read_text(encoding="utf-8"))["summary"]
    _report.write(readme, _report.put_between(readme.read_text(encoding="utf-8"), "speed", summary))
    for plot in PLOTS:
        shutil.copyfile(RESULTS / f"{plot}.svg", ROOT / "docs" / "images" / f"{plot}.svg")


def main() -> int:
    """Exit code 0 when every benchmark ran."""
    parser = argparse.ArgumentParser(description="Run every benchmark.")
    parser.add_argument("--quick", action="store_true", help="few rounds and few models: a look, not a measurement")
    parser.add_argument("--threads", type=int, help="threads of torch; default: what torch takes")
    parser.add_argument("--write-docs", action="store_true", help="write docs/dev/speed.md, its plots and README")
    options = parser.parse_args()
    if options.quick and options.write_docs:
        parser.error("--quick is too short to be written into the documentation")
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
        else:
            sections.append(section)
    print(f"\n{(time.perf_counter() - begin) / 60:.1f} minutes")
    if failed:
        print(f"failed: {', '.join(failed)}; no documentation was written", file=sys.stderr)
        return 1
    if options.write_docs:
        write_docs(sections, head)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
