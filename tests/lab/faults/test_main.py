"""Run a few trials of every scenario; `make faults` runs hundreds."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from lab.faults.__main__ import DISTURBANCES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kill -9 and fork are POSIX")
SAVED = ("save .pt", "save .safetensors", "notes", "images", "embedding", "index", "convert")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a separate process, because forking a process with threads is unsafe."""
    command = [sys.executable, "-m", "lab.faults", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def subject_options(subjects: tuple[str, ...]) -> list[str]:
    return [part for name in subjects for part in ("--subject", name)]


@pytest.mark.slow
def test_interrupted_writes() -> None:
    scenarios = [name for name in DISTURBANCES if name != "two-processes"]
    found = run(*scenarios, "--rounds", "2", *subject_options(SAVED))
    assert found.returncode == 0, found.stdout + found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == len(scenarios) * len(SAVED)
    assert all(line.endswith(" 0 wrong") for line in lines)
    assert "2 killed" in found.stdout
    assert "2 error" in found.stdout


@pytest.mark.slow
def test_interrupted_training() -> None:
    scenarios = ("killed", "killed-at-operations", "write-errors", "full-disk", "read-only")
    found = run(*scenarios, "--rounds", "1", *subject_options(("train",)))
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count(" 0 wrong") == len(scenarios)
    assert "1 killed" in found.stdout


@pytest.mark.slow
def test_writing_in_place_is_caught() -> None:
    scenarios = ("killed-at-operations", "full-disk", "read-only")
    found = run(*scenarios, "--rounds", "3", *subject_options(("careless",)))
    assert found.returncode == 1
    assert re.findall(r"^(\S+) +careless .* wrong$", found.stdout, re.MULTILINE) == list(scenarios)
    assert " 0 wrong" not in found.stdout


@pytest.mark.slow
def test_concurrency_and_memory() -> None:
    scenarios = ("two-processes", "changed-while-read", "threads", "no-memory")
    found = run(*scenarios, "--rounds", "2", *subject_options(("notes", "convert", "train")))
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count(" 0 wrong") == 3 + 3 + 1 + 2
    assert re.search(r"no-memory +each operation +2 trials \(.*[1-9]\d* error\)", found.stdout)


@pytest.mark.slow
def test_load() -> None:
    found = run("load", "--rounds", "4")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "listing 400 files" in found.stdout
    assert found.stdout.count(" 0 wrong") == 4


@pytest.mark.slow
def test_clients() -> None:
    found = run("clients", "--rounds", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    statuses = set(re.findall(r" of (\d{3})\b", found.stdout))
    assert {"200", "401", "404", "422"} <= statuses and "500" not in statuses
