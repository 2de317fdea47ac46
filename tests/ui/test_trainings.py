"""Trainings that outlive the page."""

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
from hnloader.ui.trainings import Trainings
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
def trainings(tmp_path: Path) -> Iterator[Trainings]:
    made = Trainings(tmp_path / "trainings")
    yield made
    made.stop()
    wait(lambda: made.running() is None)


def wait(until: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def status_of(trainings: Trainings, name: str) -> Status:
    return read_status(trainings.files(name).run_folder) or Status("preparing")


@pytest.mark.slow
def test_one_training_runs_at_a_time_and_can_be_stopped_and_resumed(
    trainings: Trainings, tiny_model: Path, images: Path, tmp_path: Path
) -> None:
    settings = {**QUICK, "model": str(tiny_model), "images": str(images)}
    files = trainings.start("ink", settings)
    assert trainings.running() == "ink"
    with raises(HypernetworkError, "'ink'", "running"):
        trainings.start("oil", settings)
    wait(lambda: status_of(trainings, "ink").step > 0)
    elsewhere = Trainings(trainings.folder)  # another page
    assert elsewhere.running() == "ink"
    assert elsewhere.stop() == "ink"
    wait(lambda: trainings.running() is None)
    stopped = status_of(trainings, "ink")
    assert stopped.phase == "interrupted"
    assert 0 < stopped.step < 2000
    assert hnloader.load(files.output).metadata["step"] == stopped.step

    with raises(HypernetworkError, "'ink' exists"):
        trainings.start("ink", settings)
    trainings.resume("ink", stopped.step + 60)
    wait(lambda: trainings.running() is None)
    done = status_of(trainings, "ink")
    assert (done.phase, done.step) == ("done", stopped.step + 60)
    assert done.best is not None
    assert trainings.settings("ink")["steps"] == done.step
    library = tmp_path / "library"
    copies = [trainings.use("ink", library), trainings.use("ink", library), trainings.use("ink", library, best=True)]
    assert [path.name for path in copies] == ["ink.pt", "ink-2.pt", "ink-3.pt"]
    assert copies[0].read_bytes() == files.output.read_bytes()
    assert hnloader.load(copies[2]).metadata["step"] == done.best[1]


@pytest.mark.slow
def test_an_error_before_the_first_step_is_in_the_log(trainings: Trainings, tiny_model: Path, tmp_path: Path) -> None:
    files = trainings.start("ink", {**QUICK, "model": str(tiny_model), "images": str(tmp_path / "none")})
    wait(lambda: trainings.running() is None)
    assert f"{tmp_path / 'none'} does not exist" in files.problem()
    assert not files.run_folder.exists()
    with raises(HypernetworkError, "'ink'", "no output"):
        trainings.use("ink", tmp_path)


@pytest.mark.parametrize("name", ["", "../ink", "a/b", " ink", "ink.", "x" * 80, "a\nb", "<i>"])
def test_invalid_names_are_refused(name: str, trainings: Trainings) -> None:
    with raises(HypernetworkError, "Output name", "64"):
        trainings.start(name, {"model": "m", "images": "p"})
    assert not trainings.folder.exists()


def test_wrong_settings_are_refused_before_a_process_starts(trainings: Trainings) -> None:
    with raises(HypernetworkError, "Did you mean 'steps'?"):
        trainings.start("ink", {"model": "m", "images": "p", "stepps": 3})
    with raises(HypernetworkError, "'images'"):
        trainings.start("ink", {"model": "m"})
    with raises(HypernetworkError, "'oil'"):
        trainings.resume("oil")
    assert trainings.stop() is None
    assert trainings.names() == []


def test_no_training_starts_on_a_full_disk(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1 << 30))
    with raises(HypernetworkError, "1,024 MiB"):
        trainings.start("ink", {"model": "m", "images": "p"})
    assert not trainings.folder.exists()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(HypernetworkError, "trainings", "Not a directory"):
        Trainings(tmp_path / "file" / "trainings").start("ink", {"model": "m", "images": "p"})
    with raises(HypernetworkError, "file", "File exists"):
        Trainings(tmp_path).start("file", {"model": "m", "images": "p"})


def program(path: Path, *lines: str) -> str:
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


def test_missing_packages_of_another_python_are_named(tmp_path: Path) -> None:
    assert Trainings(tmp_path).missing() == ""
    bare = program(tmp_path / "bare", "echo \"['diffusers', 'yaml']\"; echo '(3, 11)'")
    assert Trainings(tmp_path, bare).missing() == f"{bare} lacks diffusers, pyyaml."
    whole = program(tmp_path / "whole", f'exec {sys.executable} "$@"')
    assert Trainings(tmp_path, whole).missing() == ""
    other = program(tmp_path / "other", "echo hello")
    assert Trainings(tmp_path, other).missing() == f"{other} is not a working Python interpreter."
    nowhere = str(tmp_path / "nowhere")
    assert Trainings(tmp_path, nowhere).missing() == f"{nowhere} cannot be run: No such file or directory."
    with raises(HypernetworkError, "nowhere", "cannot be run"):
        Trainings(tmp_path / "trainings", nowhere).start("ink", {"model": "m", "images": "p"})
    assert Trainings(tmp_path / "trainings").running() is None


def test_the_process_finds_this_package_and_holds_the_lock(trainings: Trainings, tmp_path: Path) -> None:
    said = tmp_path / "said"
    trainings.python = program(
        tmp_path / "python",
        f'echo "$PYTHONPATH" "$@" > "{said}.part"',
        f'mv "{said}.part" "{said}"',
        "exec sleep 60",
    )
    files = trainings.start("ink", {"model": "m", "images": "p"})
    wait(said.exists)
    root = Path(hnloader.__file__).parents[1]
    words = said.read_text()
    assert words.startswith(str(root))
    assert words.endswith(f"-m hnloader train {files.config}\n")
    assert trainings.running() == "ink"
    before = files.config.read_bytes()
    for name in ("ink", "oil"):
        with raises(HypernetworkError, "'ink'", "running"):
            trainings.start(name, {"model": "another", "images": "p"})
    assert files.config.read_bytes() == before
    assert trainings.names() == ["ink"]


def test_the_error_of_a_crashed_python_is_found(trainings: Trainings, tmp_path: Path) -> None:
    lines = ["echo 'Traceback (most recent call last):'", "echo 'ImportError: no such symbol'", "exit 1"]
    trainings.python = program(tmp_path / "python", *lines)
    files = trainings.start("ink", {"model": "m", "images": "p"})
    wait(lambda: trainings.running() is None)
    assert files.problem() == "ImportError: no such symbol"


def test_a_damaged_status_is_none(tmp_path: Path) -> None:
    write_status(tmp_path, Status("running", 5, 10, best=(0.5, 4)))
    assert read_status(tmp_path) == Status("running", 5, 10, best=(0.5, 4))
    for text in ("", "[]", '{"phase": "running", "other": 1}', "\x00"):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path) is None
    write_status(tmp_path / "status.json" / "below a file", Status("done"))  # no error
