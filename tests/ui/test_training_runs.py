"""TrainingRuns that outlive the page."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import hnloader
from hnloader.errors import HypernetworkError
from hnloader.training.status import Status, read_status, write_status
from hnloader.ui.training_runs import TrainingRuns
from tests.support.tiny_model import save_images
from tests.support.trainings import raises

QUICK = {
    "steps": 2000,
    "save_every_n_steps": 50,
    "validate_every_n_steps": 50,
    "previews.every_n_steps": 0,
    "learning_rate": "1e-3",
}
PATIENCE = 300


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return save_images(tmp_path / "my images", 5, 40)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[TrainingRuns]:
    made = TrainingRuns(tmp_path / "trainings")
    yield made
    made.stop()
    wait(lambda: made.running() is None)


def wait(until: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def status_of(runs: TrainingRuns, name: str) -> Status:
    return read_status(runs.files(name).run_folder) or Status("preparing")


@pytest.mark.slow
def test_one_training_runs_at_a_time_and_can_be_stopped_and_resumed(
    runs: TrainingRuns, tiny_model: Path, images: Path, tmp_path: Path
) -> None:
    settings = {**QUICK, "model": str(tiny_model), "images": str(images)}
    files = runs.start("ink", settings)
    assert runs.running() == "ink"
    with raises(HypernetworkError, "'ink'", "in progress"):
        runs.start("oil", settings)
    wait(lambda: status_of(runs, "ink").step > 0)
    elsewhere = TrainingRuns(runs.folder)  # another page
    assert elsewhere.running() == "ink"
    assert elsewhere.stop() == "ink"
    wait(lambda: runs.running() is None)
    stopped = status_of(runs, "ink")
    assert stopped.phase == "interrupted"
    assert 0 < stopped.step < 2000
    assert hnloader.load(files.output).metadata["step"] == stopped.step

    with raises(HypernetworkError, "'ink' exists"):
        runs.start("ink", settings)
    runs.resume("ink", stopped.step + 60)
    wait(lambda: runs.running() is None)
    done = status_of(runs, "ink")
    assert (done.phase, done.step) == ("done", stopped.step + 60)
    assert done.best is not None
    assert runs.settings("ink")["steps"] == done.step
    library = tmp_path / "library"
    copies = [runs.use("ink", library), runs.use("ink", library), runs.use("ink", library, best=True)]
    assert [path.name for path in copies] == ["ink.pt", "ink-2.pt", "ink-3.pt"]
    assert copies[0].read_bytes() == files.output.read_bytes()
    assert hnloader.load(copies[2]).metadata["step"] == done.best[1]


@pytest.mark.slow
def test_an_error_before_the_first_step_is_in_the_log(runs: TrainingRuns, tiny_model: Path, tmp_path: Path) -> None:
    files = runs.start("ink", {**QUICK, "model": str(tiny_model), "images": str(tmp_path / "none")})
    wait(lambda: runs.running() is None)
    assert str(tmp_path / "none") in files.problem()
    assert not files.run_folder.exists()
    with raises(HypernetworkError, "'ink'", "no output"):
        runs.use("ink", tmp_path)


@pytest.mark.parametrize("name", ["", "../ink", "a/b", " ink", "ink.", "x" * 80, "a\nb", "<i>"])
def test_invalid_names_are_refused(name: str, runs: TrainingRuns) -> None:
    with raises(HypernetworkError, "Output name", "64"):
        runs.start(name, {"model": "m", "images": "p"})
    assert not runs.folder.exists()


def test_wrong_settings_are_refused_before_a_process_starts(runs: TrainingRuns) -> None:
    with raises(HypernetworkError, "Did you mean 'steps'?"):
        runs.start("ink", {"model": "m", "images": "p", "stepps": 3})
    with raises(HypernetworkError, "'images'"):
        runs.start("ink", {"model": "m"})
    with raises(HypernetworkError, "'oil'"):
        runs.resume("oil")
    assert runs.stop() is None
    assert runs.names() == []


def test_no_training_starts_on_a_full_disk(runs: TrainingRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1 << 30))
    with raises(HypernetworkError, "1,024 MiB"):
        runs.start("ink", {"model": "m", "images": "p"})
    assert not runs.folder.exists()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(HypernetworkError, "trainings", "Not a directory"):
        TrainingRuns(tmp_path / "file" / "trainings").start("ink", {"model": "m", "images": "p"})
    with raises(HypernetworkError, "file", "File exists"):
        TrainingRuns(tmp_path).start("file", {"model": "m", "images": "p"})


def program(path: Path, *lines: str) -> str:
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


def test_missing_packages_of_another_python_are_named(tmp_path: Path) -> None:
    assert TrainingRuns(tmp_path).missing() == ""
    bare = program(tmp_path / "bare", "echo \"['diffusers', 'yaml']\"; echo '(3, 11)'")
    assert TrainingRuns(tmp_path, bare).missing() == f"{bare} lacks diffusers, pyyaml."
    whole = program(tmp_path / "whole", f'exec {sys.executable} "$@"')
    assert TrainingRuns(tmp_path, whole).missing() == ""
    other = program(tmp_path / "other", "echo hello")
    assert TrainingRuns(tmp_path, other).missing() == f"{other} is not a working Python interpreter."
    nowhere = str(tmp_path / "nowhere")
    assert TrainingRuns(tmp_path, nowhere).missing() == f"{nowhere} cannot be run: No such file or directory."
    with raises(HypernetworkError, "nowhere", "cannot be run"):
        TrainingRuns(tmp_path / "trainings", nowhere).start("ink", {"model": "m", "images": "p"})
    assert TrainingRuns(tmp_path / "trainings").running() is None


def test_the_process_finds_this_package_and_holds_the_lock(runs: TrainingRuns, tmp_path: Path) -> None:
    said = tmp_path / "said"
    runs.python = program(
        tmp_path / "python",
        f'echo "$PYTHONPATH" "$@" > "{said}.part"',
        f'mv "{said}.part" "{said}"',
        "exec sleep 60",
    )
    files = runs.start("ink", {"model": "m", "images": "p"})
    wait(said.exists)
    root = Path(hnloader.__file__).parents[1]
    words = said.read_text()
    assert words.startswith(str(root))
    assert words.endswith(f"-m hnloader train {files.config}\n")
    assert runs.running() == "ink"
    before = files.config.read_bytes()
    for name in ("ink", "oil"):
        with raises(HypernetworkError, "'ink'", "in progress"):
            runs.start(name, {"model": "another", "images": "p"})
    assert files.config.read_bytes() == before
    assert runs.names() == ["ink"]


def test_the_error_of_a_crashed_python_is_found(runs: TrainingRuns, tmp_path: Path) -> None:
    lines = ["echo 'Traceback (most recent call last):'", "echo 'ImportError: no such symbol'", "exit 1"]
    runs.python = program(tmp_path / "python", *lines)
    files = runs.start("ink", {"model": "m", "images": "p"})
    wait(lambda: runs.running() is None)
    assert files.problem() == "ImportError: no such symbol"


def test_a_damaged_status_is_none(tmp_path: Path) -> None:
    write_status(tmp_path, Status("running", 5, 10, best=(0.5, 4)))
    assert read_status(tmp_path) == Status("running", 5, 10, best=(0.5, 4))
    for text in ("", "[]", '{"phase": "running", "other": 1}', "\x00"):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path) is None
    write_status(tmp_path / "status.json" / "below a file", Status("done"))  # no error
