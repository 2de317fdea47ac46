"""Trainings that outlive the page that started them."""

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

QUICK = {"steps": 2000, "save_every": 50, "measure_every": 50, "previews.every": 0, "learning_rate": "1e-3"}
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
    return read_status(trainings.files(name).states) or Status("preparing")


@pytest.mark.slow
def test_one_runs_at_a_time_is_stopped_from_elsewhere_and_goes_on(
    trainings: Trainings, tiny_model: Path, images: Path, tmp_path: Path
) -> None:
    settings = {**QUICK, "model": str(tiny_model), "images": str(images)}
    files = trainings.start("ink", settings)
    assert trainings.running() == "ink"
    with pytest.raises(HypernetworkError, match=r"training ink is running\. One runs at a time"):
        trainings.start("oil", settings)
    wait(lambda: status_of(trainings, "ink").step > 0)
    elsewhere = Trainings(trainings.folder)  # a page that was opened later, by another server
    assert elsewhere.running() == "ink"
    assert elsewhere.stop() == "ink"
    wait(lambda: trainings.running() is None)
    stopped = status_of(trainings, "ink")
    assert stopped.phase == "interrupted"
    assert 0 < stopped.step < 2000
    assert hnloader.load(files.output).metadata["step"] == stopped.step

    with pytest.raises(HypernetworkError, match="There is a training 'ink' already"):
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
def test_what_stops_a_training_before_it_begins_is_in_its_log(
    trainings: Trainings, tiny_model: Path, tmp_path: Path
) -> None:
    files = trainings.start("ink", {**QUICK, "model": str(tiny_model), "images": str(tmp_path / "none")})
    wait(lambda: trainings.running() is None)
    assert files.problem() == f"{tmp_path / 'none'} does not exist; name the folder with the images to train on"
    assert not files.states.exists()
    with pytest.raises(HypernetworkError, match="'ink' has not made its file yet"):
        trainings.use("ink", tmp_path)


@pytest.mark.parametrize("name", ["", "../ink", "a/b", " ink", "ink.", "x" * 80, "a\nb", "<i>"])
def test_a_name_leads_nowhere_else(name: str, trainings: Trainings) -> None:
    with pytest.raises(HypernetworkError, match="cannot be a name"):
        trainings.start(name, {"model": "m", "images": "p"})
    assert not trainings.folder.exists()


def test_settings_that_are_wrong_are_told_before_a_process_starts(trainings: Trainings) -> None:
    with pytest.raises(HypernetworkError, match="did you mean 'steps'"):
        trainings.start("ink", {"model": "m", "images": "p", "stepps": 3})
    with pytest.raises(HypernetworkError, match="images is missing"):
        trainings.start("ink", {"model": "m"})
    with pytest.raises(HypernetworkError, match="there is no training 'oil'"):
        trainings.resume("oil")
    assert trainings.stop() is None
    assert trainings.names() == []


def test_none_begins_where_the_disk_would_be_full(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1 << 30))
    with pytest.raises(HypernetworkError, match="1,024 MiB free; about 1,024 MiB are needed"):
        trainings.start("ink", {"model": "m", "images": "p"})
    assert not trainings.folder.exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HypernetworkError, match="trainings: Not a directory"):
        Trainings(tmp_path / "file" / "trainings").start("ink", {"model": "m", "images": "p"})
    with pytest.raises(HypernetworkError, match="file: File exists"):
        Trainings(tmp_path).start("file", {"model": "m", "images": "p"})


def program(path: Path, *lines: str) -> str:
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


def test_what_another_python_lacks_is_named(tmp_path: Path) -> None:
    assert Trainings(tmp_path).missing() == ""
    bare = program(tmp_path / "bare", "echo \"['diffusers', 'yaml']\"; echo '(3, 11)'")
    assert Trainings(tmp_path, bare).missing() == f"{bare} lacks diffusers, pyyaml."
    whole = program(tmp_path / "whole", f'exec {sys.executable} "$@"')
    assert Trainings(tmp_path, whole).missing() == ""
    other = program(tmp_path / "other", "echo hello")
    assert Trainings(tmp_path, other).missing() == f"{other} is no Python that works."
    nowhere = str(tmp_path / "nowhere")
    assert Trainings(tmp_path, nowhere).missing() == f"{nowhere} cannot be run: No such file or directory."
    with pytest.raises(HypernetworkError, match="nowhere cannot be run"):
        Trainings(tmp_path / "trainings", nowhere).start("ink", {"model": "m", "images": "p"})
    assert Trainings(tmp_path / "trainings").running() is None


def test_the_process_finds_this_package_and_has_the_lock(trainings: Trainings, tmp_path: Path) -> None:
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
    told = files.config.read_bytes()
    for name in ("ink", "oil"):
        with pytest.raises(HypernetworkError, match="training ink is running"):
            trainings.start(name, {"model": "another", "images": "p"})
    assert files.config.read_bytes() == told
    assert trainings.names() == ["ink"]


def test_a_python_that_falls_over_is_told(trainings: Trainings, tmp_path: Path) -> None:
    lines = ["echo 'Traceback (most recent call last):'", "echo 'ImportError: no such symbol'", "exit 1"]
    trainings.python = program(tmp_path / "python", *lines)
    files = trainings.start("ink", {"model": "m", "images": "p"})
    wait(lambda: trainings.running() is None)
    assert files.problem() == "ImportError: no such symbol"


def test_a_status_that_is_damaged_is_none(tmp_path: Path) -> None:
    write_status(tmp_path, Status("running", 5, 10, best=(0.5, 4)))
    assert read_status(tmp_path) == Status("running", 5, 10, best=(0.5, 4))
    for text in ("", "[]", '{"phase": "running", "other": 1}', "\x00"):
        (tmp_path / "status.json").write_text(text)
        assert read_status(tmp_path) is None
    write_status(tmp_path / "status.json" / "below a file", Status("done"))  # which is none the worse
