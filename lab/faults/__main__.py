"""Run the scenarios and print their counts; exit with 1 after any failure."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from lab.faults import clients, crowds, kills, load, memory, reading, writing
from lab.faults._subjects import Subject, Training, careless, subjects
from lab.faults._trials import Count

# Scenarios for every subject.
DISTURBANCES: dict[str, Callable[[Subject, Path, int, int], Count]] = {
    "killed": kills.at_random,
    "killed-at-operations": kills.at_operations,
    "write-errors": writing.errors,
    "full-disk": writing.full_disk,
    "full-tmpfs": writing.full_tmpfs,
    "read-only": writing.read_only,
    "unreadable": writing.unreadable,
    "two-processes": crowds.pairs,
}
# Scenarios with their own subjects: scenario -> subject -> function.
OTHERS: dict[str, dict[str, Callable[[Path, int, int], Count]]] = {
    "changed-while-read": {
        suffix: lambda place, rounds, seed, suffix=suffix: reading.changed(suffix, place, rounds, seed)  # type: ignore
        for suffix in (".pt", ".legacy.pt", ".safetensors")
    },
    "threads": {"one model": lambda place, rounds, seed: crowds.storms(rounds, seed)},
    "no-memory": {
        "each operation": lambda place, rounds, seed: memory.at_operations(rounds, seed),
        "the process": lambda place, rounds, seed: memory.for_real(rounds, seed),
    },
    "load": load.SCENARIOS,
    "clients": {"API": clients.api},
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    known = [*DISTURBANCES, *OTHERS]
    parser = argparse.ArgumentParser(prog="python -m lab.faults", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=100, help="trials for each subject and scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subject", action="append", default=[], help="only this subject; repeatable")
    options = parser.parse_args(arguments)
    for name in options.scenarios:
        if name not in known:
            parser.error(f"unknown scenario {name!r}. Expected one of {', '.join(known)}.")
    names = [*(each.name for each in subjects()), "train", "careless", *(name for of in OTHERS.values() for name in of)]
    for name in options.subject:
        if name not in names:
            parser.error(f"unknown subject {name!r}. Expected one of {', '.join(names)}.")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # torch's threads do not survive a fork
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="hnloader-faults-") as name:
        place = Path(name)
        scenarios = options.scenarios or known
        chosen = _chosen(options.subject, place) if set(scenarios) & set(DISTURBANCES) else []
        for scenario in scenarios:
            for subject in chosen if scenario in DISTURBANCES else ():
                wrong += _show(
                    scenario, subject.name, DISTURBANCES[scenario](subject, place, options.rounds, options.seed)
                )
            others = OTHERS.get(scenario, {})
            named = {name: others[name] for name in options.subject if name in others}
            for what, run in (named or others).items():
                wrong += _show(scenario, what, run(place, options.rounds, options.seed))
    return 1 if wrong else 0


def _show(scenario: str, subject: str, count: Count) -> int:
    print(f"{scenario:<22} {subject:<20} {count}", flush=True)
    for text in [*count.notes, *count.wrong[:3]]:
        print(f"    {text}", flush=True)
    return len(count.wrong)


def _chosen(names: list[str], place: Path) -> list[Subject]:
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
