"""Files made to do harm: refused with the right error by every reader, nothing executed, the process usable after."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hnloader.formats.registry import formats
from tests.support.builders import simple_tree, write
from tests.support.hostile import HostileFile, costly_files, hostile_files
from tests.support.paths import ROOT

# The promised memory, and CPU time with room for slow machines; `python -m lab.benchmarks.hostile` checks the promised
# 2 seconds.
MOST_BYTES = 200_000_000
MOST_SECONDS = 10.0
# The clock is asked for one thing only: that a file which hangs ends the test.
TIMEOUT = 1200

Results = dict[str, dict[str, dict[str, Any]]]


def file_name(index: int, file: HostileFile) -> str:
    return f"{index:03}{file.suffix}"


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary") / "sang"


@pytest.fixture(scope="module")
def corpus(canary: Path) -> list[HostileFile]:
    return [*hostile_files(canary), *costly_files()]


@pytest.fixture(scope="module")
def results(corpus: list[HostileFile], canary: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return the outcome and the cost of each reader for each file, from a separate process."""
    folder, sound = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("sound") / "sound.pt"
    write(sound, simple_tree())
    for index, file in enumerate(corpus):
        (folder / file_name(index, file)).write_bytes(file.data)
    before = sorted(path.name for path in folder.iterdir())
    command = [sys.executable, "-m", "tests.support.opening", folder, sound]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in folder.iterdir()) == before, "something was left behind"
    return json.loads(done.stdout)


def test_corpus_is_large_and_names_are_unique(corpus: list[HostileFile]) -> None:
    assert len({file.name for file in corpus}) == len(corpus) >= 60
    assert max(len(file.data) for file in corpus) <= 16 << 20


def test_corpus_has_files_of_every_format(corpus: list[HostileFile]) -> None:
    for one in formats():
        names = [file.name for file in corpus if file.suffix in one.suffixes and not file.name.startswith("pickle")]
        assert len(names) > 3, f"Add hostile {one.name} files to tests/support/hostile.py."


@pytest.mark.slow
def test_every_reader_refuses_every_file_with_the_right_error(corpus: list[HostileFile], results: Results) -> None:
    wrong = []
    for index, file in enumerate(corpus):
        for reader in file.readers:
            said = results[file_name(index, file)][reader]["said"]
            if file.error not in said and (reader, said) != ("catalog", "refused"):
                wrong.append(f"{file.name}: {reader}: expected {file.error}, got {said[0] if said else said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_the_api_refuses_what_the_package_refuses(corpus: list[HostileFile], results: Results) -> None:
    for index, file in enumerate(corpus):
        found = {reader: one["said"] for reader, one in results[file_name(index, file)].items()}
        for reader, of in (("API inspect", "inspect"), ("API convert", "convert"), ("catalog", "inspect")):
            expected = "accepted" if found[of] == "accepted" else "refused"
            assert found[reader] == expected, (file.name, reader, found)


@pytest.mark.slow
def test_optional_refusals_raise_only_package_errors(corpus: list[HostileFile], results: Results) -> None:
    for index, file in enumerate(corpus):
        for reader, one in results[file_name(index, file)].items():
            said = one["said"]
            assert said in ("accepted", "refused") or "HypernetworkError" in said, (file.name, reader, said)


@pytest.mark.slow
def test_memory_and_time_stay_below_the_promise(corpus: list[HostileFile], results: Results) -> None:
    for index, file in enumerate(corpus):
        for reader, one in results[file_name(index, file)].items():
            assert one["bytes"] <= MOST_BYTES, f"{file.name}: {reader}: {one['bytes']:,} bytes"
            assert one["seconds"] <= MOST_SECONDS, f"{file.name}: {reader}: {one['seconds']:.1f} s"


def test_measurement_sees_memory_and_time() -> None:
    program = (
        "import json\n"
        "from tests.support.opening import measured\n"
        "held = measured(lambda: len(bytearray(b'x') * (300 << 20)))\n"
        "again = measured(lambda: 'nothing')\n"
        "busy = measured(lambda: sum(range(10_000_000)))\n"
        "print(json.dumps([held['bytes'], again['bytes'], busy['seconds']]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    held, again, seconds = json.loads(done.stdout)
    assert held > MOST_BYTES and again < 10 << 20 and seconds > 0.01


@pytest.mark.slow
def test_nothing_was_executed(results: Results, canary: Path) -> None:
    assert results and not canary.exists()


@pytest.mark.slow
def test_process_is_usable_afterwards(results: Results) -> None:
    assert results["SOUND"]["load"]["said"] == "accepted"


def test_canary_sings_for_an_executing_reader(tmp_path: Path) -> None:
    """In a separate process: some of them end it, or leave things open."""
    program = "import pickle, sys; pickle.loads(open(sys.argv[1], 'rb').read())"
    bird = tmp_path / "sang"
    silent = []
    seen = set()
    for file in hostile_files(bird):
        if not file.runs or file.pickle in seen or b"torch" in file.pickle or b"numpy" in file.pickle:
            continue
        seen.add(file.pickle)
        (tmp_path / "file").write_bytes(file.pickle)
        subprocess.run([sys.executable, "-c", program, tmp_path / "file"], capture_output=True, timeout=TIMEOUT)
        if not list(tmp_path.glob("sang*")):
            silent.append(file.name)
        for left in tmp_path.glob("sang*"):
            left.unlink()
    assert len(seen) > 40 and not silent, silent
