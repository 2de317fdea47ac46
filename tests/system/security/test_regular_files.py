"""Files beside a user's file or in a folder are opened only if they are regular, without waiting, up to a size."""

from __future__ import annotations

import ast
import functools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hnloader.conversion import convert
from hnloader.errors import HypernetworkError
from hnloader.files import file_lock, open_regular, open_to_append, read_regular, remove_leftovers, sha256_of
from hnloader.library import Library
from hnloader.ui import sidecars
from hnloader.ui.catalog import Catalog
from hnloader.ui.index import index_path, read_index
from hnloader.ui.training_runs import TrainingRuns
from tests.support.errors import raises
from tests.support.paths import GOLDENS, ROOT

SOUND = GOLDENS / "relu_121.pt"
# Module and code of each other way to open something, with the reason.
ALLOWED = {
    "hnloader/files.py": {"open": "the one way", "os.open": "the one way", "path.open": "a file of hnloader"},
    "hnloader/cli/streams.py": {"open": "the null device", "os.open": "the null device"},
    "hnloader/ui/markup.py": {"files('hnloader.ui').joinpath('style.css').read_text": "of the package"},
    "hnloader/images.py": {"Image.open": "bytes"},
    "hnloader/cli/ui_command.py": {"webbrowser.open": "no file"},
    "hnloader/formats/torch_zip.py": {"archive.open": "a member"},
    "extension/panel.py": {"_STYLE.read_text": "of the extension"},
    "extension/hosts/a1111/automatic1111.py": {"Path(path).read_text": "the file of --gradio-auth-path"},
}

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in the file system")


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return the result or error of `work`; fail if it waits forever."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it still waits"
    return found[0]


def odd_files(folder: Path, name: str) -> Iterator[None]:
    """Put other things than files under a name, one after the other."""
    path = folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    yield
    for place in ("/dev/zero", "/dev/tty", "pipe of another", "."):
        path.unlink()
        path.symlink_to(place)
        yield
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)  # takes no room on the disk
    yield
    path.unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ink.pt").write_bytes(SOUND.read_bytes())
    os.mkfifo(tmp_path / "pipe of another")
    return tmp_path


def test_open_regular_opens_only_regular_files(folder: Path) -> None:
    with open_regular(folder / "ink.pt") as file:
        assert file.read() == SOUND.read_bytes()
    (folder / "link").symlink_to(folder / "ink.pt")
    assert read_regular(folder / "link") == SOUND.read_bytes()
    with raises(OSError, "10 bytes"):
        read_regular(folder / "ink.pt", 10)
    for _ in odd_files(folder, "odd"):
        assert isinstance(within(20, lambda: read_regular(folder / "odd")), OSError)
    for path in ("a\0b", folder / "missing", folder):
        with pytest.raises(OSError):
            open_regular(path)
        with pytest.raises(OSError):
            sha256_of(path)


def test_path_replaced_by_a_pipe_does_not_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "odd")
    before = Path.stat
    sound = before(folder / "ink.pt")
    monkeypatch.setattr(Path, "stat", lambda self, **options: sound if self.name == "odd" else before(self, **options))
    assert stat.S_ISREG((folder / "odd").stat().st_mode)
    opened = Path("/proc/self/fd")
    handles = len(list(opened.iterdir())) if opened.exists() else None
    for open_it in (open_regular, open_to_append):
        assert isinstance(within(20, lambda open_it=open_it: open_it(folder / "odd")), OSError)
    if handles is not None:
        assert len(list(opened.iterdir())) == handles


@pytest.mark.parametrize(
    "name", ["ink.json", "ink.png", "ink.preview.png", "ink.txt", "ink.pt.optim", ".x.hnloader-part"]
)
def test_files_beside_a_file_do_not_block(folder: Path, name: str) -> None:
    ink = folder / "ink.pt"
    for _ in odd_files(folder, name):
        assert within(20, lambda: sidecars.read_values(ink)) == {}
        assert within(20, lambda: sidecars.thumbnail(ink)) is None
        assert within(20, lambda: sidecars.description_beside(ink)) == ""
        assert within(20, lambda: remove_leftovers([folder])) in ([], [folder / name])
        catalog = Catalog(lambda: [folder])
        (entry,) = catalog.entries()
        assert within(20, functools.partial(catalog.inspect, entry)).info is not None
        assert not isinstance(within(20, lambda: convert(ink, folder / "out.safetensors")), Exception)
        (folder / "out.safetensors").unlink()
        if not os.path.lexists(folder / name):
            (folder / name).touch()  # an abandoned leftover, which is a file, is removed
    if name == "ink.json":
        os.mkfifo(folder / name)
        assert isinstance(within(20, lambda: sidecars.save_notes(ink, "mine")), HypernetworkError)
        assert stat.S_ISFIFO((folder / name).stat().st_mode)


def test_index_lock_and_training_files_do_not_block(folder: Path) -> None:
    index = index_path(folder, [folder])
    for _ in odd_files(folder, index.name):
        assert within(20, lambda: read_index(index)) == {}
    os.mkfifo(folder / "lock")
    os.mkfifo(folder / "job.json")

    def hold() -> None:
        with file_lock(folder / "lock", "held by another"):
            pass

    assert within(20, hold) is None
    runs = TrainingRuns(folder)
    assert within(20, runs.running) is None
    for name in ("config.yaml", "log.txt"):
        (folder / "style").mkdir(exist_ok=True)
        os.mkfifo(folder / "style" / name)
    assert isinstance(within(20, lambda: runs.settings("style")), HypernetworkError)
    assert within(20, runs.files("style").problem) == ""


def test_a_library_lists_no_pipes(folder: Path) -> None:
    os.mkfifo(folder / "odd.pt")
    assert Library([folder]).names() == ["ink"]


def _openings() -> Iterator[tuple[str, str]]:
    paths = [path for place in ("hnloader", "extension", "scripts") for path in sorted((ROOT / place).rglob("*.py"))]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            method = name.rpartition(".")[2] if "." in name else ""
            if name == "open" or method in ("open", "read_text", "read_bytes", "fdopen"):
                yield path.relative_to(ROOT).as_posix(), name


def test_package_opens_files_in_one_way() -> None:
    found = set(_openings())
    assert ("hnloader/files.py", "open") in found
    allowed = {(place, name) for place, names in ALLOWED.items() for name in names}
    # The demo reads what is part of the package, or what it made itself.
    odd = {each for each in found - allowed if not each[0].startswith("hnloader/demo/")}
    assert odd == set()
    assert allowed <= found, "listed, but no longer there"
