"""Files appear under their name whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from builders import simple_tree, write

import hnloader
from hnloader import HypernetworkError, UnknownFormatError, UnsupportedArchitectureError, files
from hnloader.files import TEMPORARY_SUFFIX, held, remove_leftovers, replacing


def test_the_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
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


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(HypernetworkError, match=r"cannot write .*style\.pt: No space left"),
        replacing(tmp_path / "style.pt"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with replacing(tmp_path / "style.pt") as temporary:
        temporary.write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "style.pt").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_what_a_killed_program_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path: Path) -> None:
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


def test_where_nothing_can_be_saved(tmp_path: Path) -> None:
    hypernetwork = hnloader.load(write(tmp_path / "style.pt", simple_tree()))
    with pytest.raises(HypernetworkError, match="cannot write"):
        hnloader.save(hypernetwork, tmp_path / "missing" / "style.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(HypernetworkError, match="is a folder"):
        hnloader.save(hypernetwork, tmp_path / "folder.pt")
    with pytest.raises(UnknownFormatError, match=r"Did you mean \.safetensors\?"):
        hnloader.save(hypernetwork, tmp_path / "style.safetensor")
    with pytest.raises(UnknownFormatError, match="ends in ''"):
        hnloader.save(hypernetwork, tmp_path / "style")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_composition_cannot_be_saved(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / "a.pt", simple_tree())
    (tmp_path / "both.hns").write_text("['a', ('a', 0.5)]")
    with pytest.raises(UnsupportedArchitectureError, match="Save its members"):
        hnloader.save(hnloader.load(tmp_path / "both.hns"), tmp_path / f"saved{suffix}")
    assert not (tmp_path / f"saved{suffix}").exists()


def test_what_went_wrong_is_told_even_where_the_temporary_file_cannot_be_removed(
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
def test_a_temporary_file_that_another_program_took_for_a_leftover_is_made_anew(
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
        "import sys\nfrom pathlib import Path\nfrom hnloader.files import held\n"
        "with held(Path(sys.argv[1]), 'taken'):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        with pytest.raises(HypernetworkError, match="taken"), held(lock, "taken"):
            pass
        running.send_signal(signal.SIGKILL)
    with held(lock, "taken"):
        pass
    (tmp_path / "file").touch()
    with held(tmp_path / "file" / "lock", "taken"):  # nothing can be made there: nothing is held
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
