"""Compare `hnloader scan` with picklescan and fickling on hostile and on harmless files.

    python -m lab.benchmarks.scan_peers --python PEERS/bin/python

PEERS is a virtual environment with both: `python -m venv PEERS && PEERS/bin/pip install picklescan fickling
typing_extensions`. Without --python, only hnloader runs. Each scanner is one process that scans every file in turn;
seconds are CPU time without startup.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Literal

from lab.benchmarks._report import table

ROOT = Path(__file__).parents[2]
Outcome = Literal["found", "error", "clean"]

# Runs in the peers' Python and prints {scanner: [seconds, {file: outcome}]} as JSON.
_PEERS = r"""
import contextlib, json, logging, sys, time, warnings
from importlib.metadata import version
from pathlib import Path
import picklescan.scanner as picklescan
import fickling
from fickling.analysis import Severity
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")

def by_picklescan(strict):
    def look(path):
        result = picklescan.scan_file_path(str(path), strict=strict)
        return "found" if result.issues_count else "error" if result.scan_err else "clean"
    return look

def by_fickling(path):
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        members = fickling.scan_zip_archive(str(path), graceful=True)
        # It treats every member as a pickle; errors of other members do not count.
        results = [one for name, one in members.items()
            if one.results or name == "<archive>" or name.lower().endswith("pkl")]
    else:
        results = [fickling.scan_file(str(path), graceful=True)]
    # Errors alone make the severity SUSPICIOUS or UNKNOWN; findings are in the results.
    if any(one.severity > Severity.LIKELY_SAFE and one.results and not all(
            analysis.severity <= Severity.LIKELY_SAFE for analysis in one.results) for one in results):
        return "found"
    return "error" if any(one.errors for one in results) else "clean"

def measured(look):
    found, begin = {}, time.process_time()
    for path in sorted(Path(sys.argv[1]).iterdir()):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found[path.name] = look(path)
        except (Exception, RecursionError):
            found[path.name] = "error"
    return [time.process_time() - begin, found]

print(json.dumps({
    f"picklescan {version('picklescan')}": measured(by_picklescan(False)),
    f"picklescan {version('picklescan')} --strict": measured(by_picklescan(True)),
    f"fickling {version('fickling')}": measured(by_fickling),
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, help="Python interpreter with picklescan and fickling")
    parser.add_argument("--missed", action="store_true", help="also list the hostile files that each scanner missed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "files"
        folder.mkdir()
        kinds, names = write_files(folder, Path(place) / "canary")
        outcomes = {"hnloader scan": ours(folder)}
        if options.python is not None:
            outcomes |= peers(options.python, folder)
        executed = (Path(place) / "canary").exists()
    print(report(kinds, outcomes))
    if executed:
        print("\nA scanner executed a file.")
    if options.missed:
        for scanner, (_, found) in outcomes.items():
            missed = sorted(names[file] for file, kind in kinds.items() if kind == "runs" and found[file] == "clean")
            print(f"\n{scanner}: {', '.join(missed) or 'none'}")


def write_files(folder: Path, canary: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Write the files; return their kinds ("runs", "names", "broken", "sound") and titles by file name."""
    from tests.support.hostile import hostile_files
    from tests.system.security.test_harmless import variant

    kinds: dict[str, str] = {}
    names: dict[str, str] = {}

    def add(data: bytes, suffix: str, kind: str, name: str) -> None:
        file = f"{len(kinds):04}{suffix}"
        (folder / file).write_bytes(data)
        kinds[file], names[file] = kind, name

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for hostile in hostile_files(canary):
            add(
                hostile.data,
                hostile.suffix,
                "runs" if hostile.runs else "names" if hostile.calls else "broken",
                hostile.name,
            )
        for index in range(200):
            add(variant(index), ".pt", "sound", f"variant {index}")
    for path in sorted((ROOT / "tests" / "goldens").glob("*.pt")):
        add(path.read_bytes(), ".pt", "sound", path.name)
    return kinds, names


def ours(folder: Path) -> tuple[float, dict[str, Outcome]]:
    from hnloader.scanning import scan

    begin = time.process_time()
    verdicts = {path.name: scan(path).verdict for path in sorted(folder.iterdir())}
    seconds = time.process_time() - begin
    meaning: dict[str, Outcome] = {"suspicious": "found", "unreadable": "error"}
    return seconds, {name: meaning.get(verdict, "clean") for name, verdict in verdicts.items()}


def peers(python: Path, folder: Path) -> dict[str, tuple[float, dict[str, Outcome]]]:
    done = subprocess.run([python, "-c", _PEERS, folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{python}: Cannot run the scanners.\n{done.stderr[-2000:]}")
    return {name: (seconds, found) for name, (seconds, found) in json.loads(done.stdout.splitlines()[-1]).items()}


def report(kinds: dict[str, str], outcomes: dict[str, tuple[float, dict[str, Outcome]]]) -> str:
    """Return the table, with a row for each scanner."""
    total = Counter(kinds.values())
    rows = []
    for scanner, (seconds, found) in outcomes.items():
        count = Counter((kinds[file], outcome) for file, outcome in found.items())
        cells = [count[kind, outcome] for kind in ("runs", "names") for outcome in ("found", "error", "clean")]
        cells += [count["broken", "clean"], count["sound", "found"], count["sound", "error"]]
        rows.append([scanner, *map(str, cells), f"{seconds:.1f}"])
    head = ["", f"of {total['runs']} that run: found", "error", "missed"]
    head += [f"of {total['names']} that name: found", "error", "missed", f"of {total['broken']} broken: called clean"]
    head += [f"of {total['sound']} sound: accused", "error", "CPU seconds"]
    return table(head, rows)


if __name__ == "__main__":
    main()
