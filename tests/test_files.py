"""Files appear under their name complete or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import hnloader
from hnloader import ExistingFileError, HypernetworkError, UnknownFormatError, UnsupportedArchitectureError, files
from hnloader.files import TEMPORARY_SUFFIX, check_room, file_lock, remove_leftovers, replacing
from tests.support.builders import simple_tree, write


def test_the_file_gets_its_name_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "style.pt"
    with replacing(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.parent == tmp_path
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "style.pt"
    target.write_bytes(b"old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise error
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(HypernetworkError, match=r"style\.pt.*No space left"),
        replacing(tmp_path / "style.pt"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with replacing(tmp_path / "style.pt") as temporary:
        temporary.write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "style.pt").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_files_of_killed_programs_are_removed_and_those_of_running_programs_stay(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hnloader.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half')\n    print('writing', flush=True)\n    sys.stdin.read()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "style.pt")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        (half,) = tmp_path.iterdir()
        assert half.name.startswith(".style.pt.")
        assert half.name.endswith(TEMPORARY_SUFFIX)
        (tmp_path / "notes.part").touch()
        assert remove_leftovers([tmp_path, tmp_path / "missing"]) == []
        assert half.exists()
        running.send_signal(signal.SIGKILL)
    assert half.exists()
    assert remove_leftovers([tmp_path]) == [half]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.part"]


def test_saving_where_it_is_impossible_is_refused(tmp_path: Path) -> None:
    hypernetwork = hnloader.load(write(tmp_path / "style.pt", simple_tree()))
    with pytest.raises(HypernetworkError, match=r"missing.style\.pt"):
        hnloader.save(hypernetwork, tmp_path / "missing" / "style.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(HypernetworkError, match=r"folder\.pt"):
        hnloader.save(hypernetwork, tmp_path / "folder.pt")
    with pytest.raises(UnknownFormatError, match=r"\.safetensors"):
        hnloader.save(hypernetwork, tmp_path / "style.safetensor")
    with pytest.raises(UnknownFormatError, match="''"):
        hnloader.save(hypernetwork, tmp_path / "style")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_composition_cannot_be_saved(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / "a.pt", simple_tree())
    (tmp_path / "both.hns").write_text("['a', ('a', 0.5)]")
    with pytest.raises(UnsupportedArchitectureError, match="both"):
        hnloader.save(hnloader.load(tmp_path / "both.hns"), tmp_path / f"saved{suffix}")
    assert not (tmp_path / f"saved{suffix}").exists()


def test_the_first_error_is_reported_if_the_temporary_file_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with (
        pytest.raises(HypernetworkError, match="No space left"),
        replacing(tmp_path / "style.pt"),
    ):
        raise OSError(28, "No space left on device")
    with replacing(tmp_path / "style.pt") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "style.pt").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="locks are POSIX")
def test_a_temporary_file_that_another_program_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = files.fcntl.flock, []

    def removed_before_it_is_locked(handle: int, how: int) -> None:
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        lock(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", removed_before_it_is_locked)
    with replacing(tmp_path / "style.pt") as temporary:
        temporary.write_bytes(b"new")
    assert len(removed) == 1
    assert (tmp_path / "style.pt").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="locks are POSIX")
def test_a_lock_is_held_by_one_program_and_ends_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "made" / "lock"
    code = (
        "import sys\nfrom pathlib import Path\nfrom hnloader.files import file_lock\n"
        "with file_lock(Path(sys.argv[1]), 'taken'):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        with pytest.raises(HypernetworkError, match="taken"), file_lock(lock, "taken"):
            pass
        running.send_signal(signal.SIGKILL)
    with file_lock(lock, "taken"):
        pass
    (tmp_path / "file").touch()
    with file_lock(tmp_path / "file" / "lock", "taken"):  # without a folder, nothing is held
        pass


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(HypernetworkError, match="it is a pipe, a socket or a device"), replacing(tmp_path / name):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "null").is_symlink()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link", "new"):
        with replacing(tmp_path / name) as temporary:
            temporary.write_bytes(b"new")
        assert (tmp_path / name).read_bytes() == b"new"


# -- existing files and permissions

POSIX = pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@POSIX
@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize("before", [0o600, 0o640, 0o644, 0o664, 0o444, 0o755])
def test_a_replaced_file_keeps_its_permissions(before: int, tmp_path: Path) -> None:
    target = tmp_path / "style.pt"
    target.write_bytes(b"old")
    target.chmod(before)
    with replacing(target) as temporary:
        assert mode(temporary) & 0o077 & ~before == 0
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert mode(target) == before


@POSIX
@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize(
    ("source", "old", "after"),
    [
        (0o600, None, 0o600),
        (0o400, None, 0o600),
        (0o640, None, 0o640),
        (0o644, None, 0o644),
        (0o444, None, 0o644),
        (0o666, None, 0o644),
        (0o600, 0o644, 0o600),
        (0o640, 0o664, 0o660),
        (0o644, 0o664, 0o664),
        (0o644, 0o600, 0o600),
    ],
)
def test_users_who_cannot_read_a_source_cannot_read_the_result(
    source: int, old: int | None, after: int, tmp_path: Path
) -> None:
    private, other, target = tmp_path / "private", tmp_path / "other", tmp_path / "target"
    private.touch()
    private.chmod(source)
    other.touch()
    if old is not None:
        target.touch()
        target.chmod(old)
    with replacing(target, sources=[other, private, tmp_path / "missing"]) as temporary:
        assert mode(temporary) & 0o077 & ~after == 0
        temporary.write_bytes(b"new")
    assert mode(target) == after


@pytest.mark.parametrize("kind", ["file", "link", "broken link"])
@pytest.mark.parametrize("meanwhile", [False, True])
def test_an_existing_file_stays_without_overwrite(kind: str, meanwhile: bool, tmp_path: Path) -> None:
    target, other = tmp_path / "style.pt", tmp_path / "other"

    def appear() -> None:
        if kind == "file":
            target.write_bytes(b"old")
        else:
            if kind == "link":
                other.write_bytes(b"old")
            target.symlink_to(other)

    if not meanwhile:
        appear()
    with (
        pytest.raises(ExistingFileError),
        replacing(target, overwrite=False) as temporary,
    ):
        temporary.write_bytes(b"new")
        appear()
    assert target.is_symlink() == (kind != "file")
    assert not target.exists() or target.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} <= {"style.pt", "other"}


def test_a_new_file_is_written_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "style.pt"
    with replacing(target, overwrite=False) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    with (
        pytest.raises(ExistingFileError),
        replacing(tmp_path / "more.pt", overwrite=False),
    ):
        (tmp_path / "more.pt").write_bytes(b"old")
    assert (tmp_path / "more.pt").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_files_are_replaced_together_or_not_at_all(
    links: bool, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no")))
    state, weights = tmp_path / "style.pt.optim", tmp_path / "style.pt"
    if old:
        state.write_bytes(b"old state")
    weights.mkdir()  # a file cannot take the name of a folder
    with (
        pytest.raises(HypernetworkError, match=r"style\.pt"),
        files.replacing_together({state: (), weights: ()}) as temporaries,
    ):
        for temporary in temporaries:
            temporary.write_bytes(b"new")
    assert state.exists() == old
    assert not old or state.read_bytes() == b"old state"
    weights.rmdir()
    with files.replacing_together({state: (), weights: ()}) as temporaries:
        for temporary in temporaries:
            temporary.write_bytes(b"new")
    assert state.read_bytes() == weights.read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 2


def test_checks_the_room_of_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=files.RESERVE + 1000))
    check_room(tmp_path / "not" / "yet", 1000)
    with pytest.raises(HypernetworkError, match="512 MiB"):
        check_room(tmp_path / "not" / "yet", 1001)
