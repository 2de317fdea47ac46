"""Runs the scenarios and prints a table of what was counted; exits with 1 when anything was found wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.faults import kills, writing
from benchmarks.faults._subjects import Subject, Training, careless, subjects
from benchmarks.faults._trials import Count

# What is done to every subject.
DISTURBANCES: dict[str, Callable[[Subject, Path, int, int], Count]] = {
    "killed": kills.at_random,
    "killed-at-operations": kills.at_operations,
    "write-errors": writing.errors,
    "full-disk": writing.full_disk,
    "full-tmpfs": writing.full_tmpfs,
    "read-only": writing.read_only,
    "unreadable": writing.unreadable,
}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(DISTURBANCES)}; all by default")
    parser.add_argument("--rounds", type=int, default=100, help="trials of each subject in each scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subject", action="append", help="only this one; may be given several times")
    options = parser.parse_args(arguments)
    unknown = set(options.scenarios) - set(DISTURBANCES)
    if unknown:
        parser.error(f"there is no scenario {sorted(unknown)[0]!r}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads of torch's would not survive a fork
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="hnloader-faults-") as name:
        place = Path(name)
        chosen = _chosen(options.subject, place)
        for scenario in options.scenarios or DISTURBANCES:
            for subject in chosen:
                count = DISTURBANCES[scenario](subject, place, options.rounds, options.seed)
                print(f"{scenario:<22} {subject.name:<20} {count}", flush=True)
                for text in count.wrong[:3]:
                    print(f"    {text}", flush=True)
                wrong += len(count.wrong)
    return 1 if wrong else 0


def _chosen(names: list[str] | None, place: Path) -> list[Subject]:
    found = [each for each in subjects() if not names or each.name in names]
    if not names or "train" in names:
        made = place / "training"
        made.mkdir()
        found.append(Training(made).subject())
    if names and "careless" in names:
        found.append(careless())
    return found


if __name__ == "__main__":
    sys.exit(main())
