"""A few trials of every scenario of `python -m lab.faults`, which runs hundreds."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from lab.faults.__main__ import DISTURBANCES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kill -9 and fork are POSIX")
SAVED = ("save .pt", "save .safetensors", "notes", "images", "embedding", "index", "convert")


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: it forks, which a process with threads had better not."""
    command = [sys.executable, "-m", "lab.faults", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def named(subjects: tuple[str, ...]) -> list[str]:
    return [part for name in subjects for part in ("--subject", name)]


@pytest.mark.slow
def test_nothing_is_lost_or_half_written_whatever_is_interrupted() -> None:
    scenarios = [name for name in DISTURBANCES if name != "two-processes"]
    found = ran(*scenarios, "--rounds", "3", *named(SAVED))
    assert found.returncode == 0, found.stdout + found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == len(scenarios) * len(SAVED)
    assert all(line.endswith(" 0 wrong") for line in lines)
    assert "3 killed" in found.stdout
    assert "3 error" in found.stdout


@pytest.mark.slow
def test_a_training_goes_on_to_the_same_bits_whatever_interrupted_it() -> None:
    scenarios = ("killed", "killed-at-operations", "write-errors", "full-disk", "read-only")
    found = ran(*scenarios, "--rounds", "2", *named(("train",)))
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count(" 0 wrong") == len(scenarios)
    assert "2 killed" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["killed-at-operations", "full-disk", "read-only"])
def test_a_program_that_writes_in_place_is_found_out(scenario: str) -> None:
    found = ran(scenario, "--rounds", "3", *named(("careless",)))
    assert found.returncode == 1
    assert " 0 wrong" not in found.stdout


@pytest.mark.slow
def test_two_processes_files_that_change_threads_and_no_memory() -> None:
    scenarios = ("two-processes", "changed-while-read", "threads", "no-memory")
    found = ran(*scenarios, "--rounds", "4", *named(("notes", "convert", "train")))
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count(" 0 wrong") == 3 + 3 + 1 + 2
    assert re.search(r"no-memory +each operation +4 trials \(.*[1-9]\d* error\)", found.stdout)


@pytest.mark.slow
def test_large_libraries_and_long_lives() -> None:
    found = ran("load", "--rounds", "10")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "listing 1,000 files" in found.stdout
    assert found.stdout.count(" 0 wrong") == 4


@pytest.mark.slow
def test_fifty_clients_of_the_api_at_once() -> None:
    found = ran("clients", "--rounds", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    statuses = set(re.findall(r" of (\d{3})\b", found.stdout))
    assert {"200", "401", "404", "422"} <= statuses and "500" not in statuses
