"""The library's index, which must never report something wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hnloader.errors import HypernetworkError
from hnloader.ui import catalog as module
from hnloader.ui import index
from hnloader.ui.catalog import Catalog
from hnloader.ui.catalog_entry import Entry
from hnloader.ui.index import cache_folder, index_path
from hnloader.ui.sidecars import save_notes
from tests.support.builders import simple_tree, write

ODD = {"list": [1, (2.5, True)], "nothing": None, "far": math.inf, "bytes": b"\x00\xff", "lone": "\ud800", "set": {"a"}}


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    (folder / "sub").mkdir(parents=True)
    write(folder / "ink.pt", simple_tree(768, step=5, sd_checkpoint_name="Anything", odd=ODD))
    write(folder / "sub" / "wash.pt", simple_tree(8, seed=1, step=70))
    write(folder / "sub" / "wash 2.pt", simple_tree(16, seed=2))
    (folder / "both.hns").write_text("[ink, wash]")
    (folder / "bad.pt").write_bytes(b"nothing")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hnloader"


def start(shelf: Path, cache: Path | None) -> dict[str, Entry]:
    """Return what a new program knows after inspecting all files, by file name."""
    catalog = Catalog(lambda: [shelf], cache)
    list(catalog.inspect_all())
    return {entry.path.name: entry for entry in catalog.entries()}


def test_the_second_start_reuses_the_index(shelf: Path, cache: Path, reads: list[str]) -> None:
    first = start(shelf, cache)
    reads.clear()
    second = start(shelf, cache)
    assert sorted(reads) == ["bad.pt", "both.hns"]
    assert second == first == start(shelf, None)
    metadata = second["ink.pt"].info.metadata
    assert metadata["odd"] == ODD
    assert [type(part) for part in metadata["odd"]["list"]] == [int, tuple]


def test_a_killed_program_leaves_its_inspections(shelf: Path, cache: Path, reads: list[str], monkeypatch) -> None:
    monkeypatch.setattr(module, "_UNSAVED", 2)
    catalog = Catalog(lambda: [shelf], cache)
    for entry in catalog.search("pt")[:2]:
        if entry.path.name != "bad.pt":
            catalog.inspect(entry)
    catalog.inspect(catalog.search("wash 2")[0])
    reads.clear()
    again = Catalog(lambda: [shelf], cache)
    assert sum(entry.inspected for entry in again.entries()) == 2
    assert reads == []


def overwrite(path: Path, data: bytes) -> None:
    """Write other content with the same inode and time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.truncate(len(data))
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_ino == status.st_ino


def replaced(path: Path) -> None:
    """Replace a file by another of the same size and time."""
    status = path.stat()
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


CHANGES = {
    "size": lambda path: overwrite(path, path.read_bytes() + b" "),
    "time": lambda path: os.utime(path, (1, 1)),
    "inode": replaced,
}


@pytest.mark.parametrize("change", CHANGES)
def test_inspects_a_changed_file_again(change: str, shelf: Path, cache: Path, reads: list[str]) -> None:
    start(shelf, cache)
    CHANGES[change](shelf / "ink.pt")
    reads.clear()
    assert start(shelf, cache) == start(shelf, None)
    assert reads.count("ink.pt") == 2  # once by each of the two


def test_follows_new_and_removed_files(shelf: Path, cache: Path, reads: list[str]) -> None:
    start(shelf, cache)
    (shelf / "ink.pt").rename(shelf / "sub" / "renamed.pt")
    write(shelf / "new.pt", simple_tree(24))
    reads.clear()
    found = start(shelf, cache)
    assert sorted(reads) == ["bad.pt", "both.hns", "new.pt", "renamed.pt"]
    assert "ink.pt" not in found and found["renamed.pt"].info.path == shelf / "sub" / "renamed.pt"


def test_notes_are_current(shelf: Path, cache: Path, reads: list[str]) -> None:
    start(shelf, cache)
    save_notes(shelf / "ink.pt", "written by a webui meanwhile")
    reads.clear()
    assert start(shelf, cache)["ink.pt"].notes == "written by a webui meanwhile"
    assert "ink.pt" not in reads
    (shelf / "ink.json").unlink()
    assert start(shelf, cache)["ink.pt"].notes == ""


def the_index(shelf: Path, cache: Path) -> Path:
    return index_path(cache, [shelf])


def other_version(data: bytes) -> bytes:
    return data.replace(b'"version": 2', b'"version": 1', 1)


DAMAGES = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "cut off in its first line": lambda data: data[:20],
    "one bit in a name": lambda data: data.replace(b"Anything", b"Anythinf"),
    "one bit in a stamp": lambda data: data.replace(b'"stamp":[', b'"stamp":[1', 1),
    "something behind it": lambda data: data + b" ",
    "another version": other_version,
    "another program's": lambda data: b'{"files": []}\n{}',
    "not text": lambda data: bytes(range(256)) * 100,
    "an endless first line": lambda data: b"[" * 100_000,
    "nested deeply": lambda data: data.split(b"\n")[0] + b"\n" + b"[" * 100_000,
    "zeros, as after a power failure": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_replaced(damage: str, shelf: Path, cache: Path, reads: list[str]) -> None:
    expected = start(shelf, cache)
    path = the_index(shelf, cache)
    sound = path.read_bytes()
    changed = DAMAGES[damage](sound)
    assert changed != sound
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    reads.clear()
    assert start(shelf, cache) == expected
    assert len(reads) == 5
    assert path.read_bytes() == sound


@pytest.mark.parametrize(
    "record",
    [
        None,
        1,
        [],
        {},
        {"stamp": None},
        {"info": {}},
        {"info": {"widths": 5}},
        {"notes": 1},
        {"info": {"metadata": [1]}},
    ],
)
def test_ignores_malformed_records(record: object, shelf: Path, cache: Path, reads: list[str]) -> None:
    """With a correct checksum, as a faulty version could write them."""
    expected = start(shelf, cache)
    path = the_index(shelf, cache)
    records = json.loads(path.read_bytes().split(b"\n", 1)[1])
    for known in records.values():
        if isinstance(record, dict):
            for key, value in record.items():
                known[key] = {**known[key], **value} if key == "info" and value else value
    if not record or not isinstance(record, dict):
        records = dict.fromkeys(records, record)
    body = json.dumps(records).encode()
    path.write_bytes(json.dumps(index._head(body)).encode() + b"\n" + body)
    reads.clear()
    assert start(shelf, cache).keys() == expected.keys()
    assert {"ink.pt", "wash.pt", "wash 2.pt"} <= set(reads)


def test_works_without_a_writable_folder(shelf: Path, tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert start(shelf, tmp_path / "cache" / "hnloader") == start(shelf, None)


def test_a_full_disk_leaves_the_old_index(shelf: Path, cache: Path, monkeypatch) -> None:
    expected = start(shelf, cache)
    before = the_index(shelf, cache).read_bytes()
    os.utime(shelf / "ink.pt", (1, 1))

    def full(path: Path) -> object:
        raise HypernetworkError("No space left on device.")

    monkeypatch.setattr(index, "replacing", full)
    assert start(shelf, cache).keys() == expected.keys()
    assert the_index(shelf, cache).read_bytes() == before


def test_leaves_out_a_long_record(shelf: Path, cache: Path) -> None:
    write(shelf / "long.pt", simple_tree(8, notes="x" * 100_000))
    expected = start(shelf, cache)
    assert the_index(shelf, cache).stat().st_size < 20_000
    assert start(shelf, cache) == expected


@pytest.mark.slow
def test_two_programs_leave_one_sound_index(shelf: Path, cache: Path, reads: list[str]) -> None:
    program = (
        "import sys; from pathlib import Path; from hnloader.ui.catalog import Catalog\n"
        "for number in range(20):\n"
        "    for path in Path(sys.argv[2]).glob('*.json') if number % 2 else ():\n"
        "        path.unlink(missing_ok=True)\n"
        "    catalog = Catalog(lambda: [Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "    list(catalog.inspect_all())\n"
        "    assert catalog.counts().bad == 1, [entry.problem for entry in catalog.entries()]\n"
    )
    command = [sys.executable, "-c", program, str(shelf), str(cache)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in running] == ["", ""]
    assert start(shelf, cache) == start(shelf, None)
    assert [path.name for path in cache.iterdir()] == [the_index(shelf, cache).name]
    reads.clear()
    start(shelf, cache)
    assert sorted(reads) == ["bad.pt", "both.hns"]


def test_every_list_of_folders_has_its_index(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert len({index_path(tmp_path, folders) for folders in ([one], [two], [one, two], [two, one])}) == 4


def test_the_folder_is_in_the_user_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hnloader"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() is not None and cache_folder().is_relative_to(tmp_path)
