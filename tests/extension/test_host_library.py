"""The library of a webui: listed again when needed, by one thread for all that wait."""

from __future__ import annotations

import threading
from pathlib import Path

from extension.host_library import HostLibrary


def test_one_of_several_waiting_threads_lists_for_all(tmp_path: Path) -> None:
    begun, go_on, waiting = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
    calls = 0

    class Lock:
        """A lock that counts the threads that wait for it."""

        lock = threading.Lock()

        def __enter__(self) -> None:
            waiting.release()
            self.lock.acquire()

        def __exit__(self, *raised: object) -> None:
            self.lock.release()

    def folders() -> list[Path]:
        nonlocal calls
        calls += 1
        begun.release()
        go_on.wait(60)
        return [tmp_path]

    go_on.set()
    library = HostLibrary(folders)
    library._listing = Lock()
    assert begun.acquire(timeout=60)
    go_on.clear()
    found: list[int] = []
    first = threading.Thread(target=library.refresh)
    first.start()
    assert begun.acquire(timeout=60)
    (tmp_path / "new.pt").touch()  # during the first listing
    others = [threading.Thread(target=lambda: found.append(len(library.refresh().files()))) for _ in range(5)]
    for thread in others:
        thread.start()
    for _ in (first, *others):
        assert waiting.acquire(timeout=60)
    go_on.set()
    for thread in (first, *others):
        thread.join()
    assert found == [1] * 5
    assert calls == 3  # at the start, by the first thread, and once for the others


def test_moved_file_is_found_in_its_new_folder(tmp_path: Path) -> None:
    (tmp_path / "ink.pt").touch()
    library = HostLibrary(lambda: [tmp_path])
    assert library.find("ink").path == tmp_path / "ink.pt"
    (tmp_path / "styles").mkdir()
    (tmp_path / "ink.pt").rename(tmp_path / "styles" / "ink.pt")
    assert library.find_tagged("ink").path == tmp_path / "styles" / "ink.pt"


def test_deleted_copy_leaves_the_other_file_of_its_name(tmp_path: Path) -> None:
    for name in ("ink.safetensors", "ink.pt"):
        (tmp_path / name).touch()
    library = HostLibrary(lambda: [tmp_path])
    preferred = library.find("ink").path
    preferred.unlink()
    assert library.find_tagged("ink").path == next(tmp_path.iterdir()) != preferred
