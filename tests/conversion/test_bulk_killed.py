"""A real run over many files that is killed again and again: in the end all is right, and nothing half-written
was ever to be seen."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import hnloader
from hnloader.embeddings import load_embedding
from hnloader.files import TEMPORARY_SUFFIX
from tests.support.examples import examples
from tests.support.mixed import Mixed, make_mixed

# 5 % of the files are broken, of ten kinds.
GOOD, BROKEN_OF_EACH = examples(570, 1900), examples(3, 10)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hnloader", "convert", *map(str, arguments)]


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """While the block runs, reads every file that becomes visible in full, once; yields what was wrong with any."""
    wrong: list[str] = []
    seen: set[Path] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for path in folder.rglob("*.safetensors"):
                if path not in seen:
                    seen.add(path)
                    try:
                        load_embedding(path) if path.name.startswith("embedding") else hnloader.load(path)
                    except Exception as error:
                        wrong.append(f"{path}: {error}")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield wrong
    finally:
        over.set()
        watcher.join()


def kill_while_it_writes(mixed: Mixed, new: Path, after: int) -> None:
    """Start a run, and kill it after `after` more files."""
    wanted = len(list(new.rglob("*.safetensors"))) + after
    running = subprocess.Popen(
        command(mixed.folder, "--out", new), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(list(new.rglob("*.safetensors"))) < wanted and running.poll() is None:
        time.sleep(0.01)  # polling without a pause would slow the run
    running.kill()
    assert running.wait() == -signal.SIGKILL  # it was still at work


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_a_run_killed_many_times_completes(tmp_path: Path) -> None:
    mixed = make_mixed(tmp_path / "old", GOOD, broken=BROKEN_OF_EACH, others=2)
    new = tmp_path / "new"
    new.mkdir()
    before = {path: path.read_bytes() for path in mixed.good}
    moments = random.Random(0)
    with watched(new) as wrong:
        for _ in range(4):
            kill_while_it_writes(mixed, new, moments.randint(1, examples(60, 200)))
        done_before = {path: path.stat().st_mtime_ns for path in new.rglob("*.safetensors")}
        report = tmp_path / "report.json"
        ended = subprocess.run(
            command(mixed.folder, "--out", new, "--report", report), capture_output=True, text=True, check=False
        )
    assert wrong == []
    assert ended.returncode == 3, ended.stderr
    assert hidden(tmp_path) == []
    entries = {Path(entry["source"]): entry for entry in json.loads(report.read_text())}
    converted = [*mixed.good, *mixed.embeddings]
    assert len(entries) == len(converted) + len(mixed.broken) + len(mixed.others)
    # What was done before the last run was not done again.
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
    assert sum(entry["outcome"] == "up to date" for entry in entries.values()) == len(done_before)
    for path in converted:
        assert entries[path]["outcome"] in ("converted", "up to date")
        target = Path(entries[path]["target"])
        assert target == (new / path.relative_to(mixed.folder)).with_suffix(".safetensors")
    for path in mixed.good:
        target = Path(entries[path]["target"])
        assert hnloader.inspect(target).metadata == hnloader.inspect(path).metadata
    for path, reason in mixed.broken.items():
        assert entries[path]["outcome"] == "failed"
        assert reason in entries[path]["reason"]
        assert path.name in ended.stdout
    for path, reason in mixed.others.items():
        assert entries[path]["outcome"] == "skipped"
        assert reason in entries[path]["reason"]
    assert len(list(new.rglob("*.safetensors"))) == len(converted)
    assert {path: path.read_bytes() for path in mixed.good} == before  # sources are as they were
