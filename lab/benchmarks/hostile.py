"""Measure the cost of opening each hostile file with every reader.

    python -m lab.benchmarks.hostile

Prints the most CPU time and memory that any file took, for each reader, with the name of the file. Exits with 1 if a
file took more than the 2 s and 200 MB that docs/security.md promises, or if anything in a file was executed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from lab.benchmarks._report import table

ROOT = Path(__file__).parents[2]
MOST_SECONDS, MOST_BYTES = 2.0, 200_000_000


def main() -> int:
    """Open all files and print the table."""
    warnings.simplefilter("ignore")
    from tests.support.builders import simple_tree, write
    from tests.support.hostile import costly_files, hostile_files

    with tempfile.TemporaryDirectory(prefix="hnloader-hostile-") as name:
        place = Path(name)
        (place / "files").mkdir()
        names = {}
        for index, file in enumerate([*hostile_files(place / "sang"), *costly_files()]):
            path = place / "files" / f"{index:03}{file.suffix}"
            path.write_bytes(file.data)
            names[path.name] = file.name
        write(place / "sound.pt", simple_tree())
        command = [
            sys.executable,
            "-m",
            "tests.support.opening",
            str(place / "files"),
            str(place / "sound.pt"),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT)
        executed = (place / "sang").exists()
    results = json.loads(done.stdout)
    usable = results.pop("SOUND")["load"]["said"] == "accepted"
    print(table(*_rows(results, names)))
    print(f"\nexecuted: {'something' if executed else 'nothing'}; usable afterwards: {'yes' if usable else 'no'}")
    over = [
        one
        for readers in results.values()
        for one in readers.values()
        if one["seconds"] > MOST_SECONDS or one["bytes"] > MOST_BYTES
    ]
    return 1 if over or executed or not usable else 0


def _rows(results: dict[str, dict[str, Any]], names: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    head = ["reader", "files", "refused", "most CPU seconds", "by", "most MB", "by"]
    rows = []
    for reader in next(iter(results.values())):
        found = {names[file]: one[reader] for file, one in results.items()}
        slowest, largest = (max(found, key=lambda name: found[name][what]) for what in ("seconds", "bytes"))
        refused = sum(one["said"] != "accepted" for one in found.values())
        rows.append(
            [
                *(reader, str(len(found)), str(refused), f"{found[slowest]['seconds']:.2f}", slowest),
                *(f"{found[largest]['bytes'] / 1e6:.0f}", largest),
            ]
        )
    return head, rows


if __name__ == "__main__":
    sys.exit(main())
