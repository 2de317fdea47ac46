"""Files found by the hashes that images name them by, and how often they are read for that."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import hnloader.hashes
from hnloader.errors import HypernetworkNotFoundError
from hnloader.hashes import LEGACY_OF_NOTHING, Hashes, find_by_hash, find_named
from hnloader.library import Library


def big(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([seed]) * (1 << 20) + bytes([seed]) * 70_000)
    return path


def old_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read whole."""
    names: list[str] = []
    whole = hnloader.hashes.sha256_of

    def counted(path: Path) -> str:
        names.append(Path(path).name)
        return whole(path)

    monkeypatch.setattr(hnloader.hashes, "sha256_of", counted)
    return names


def test_hash_wins_over_the_name(tmp_path: Path, read: list[str]) -> None:
    other, same = big(tmp_path / "net.pt", 1), big(tmp_path / "sub" / "renamed.pt", 2)
    library, hashes = Library([tmp_path]), Hashes()
    for digest in (old_hash(same), hashlib.sha256(same.read_bytes()).hexdigest()[:10]):
        found = find_by_hash(library, "net", digest, hashes)
        assert found is not None
        assert found.path == same
    assert find_by_hash(library, "net", old_hash(other), hashes) == library.first("net")
    assert find_by_hash(library, "net", "0123abcd", hashes) is None
    assert find_named(library, f"net-60000({old_hash(same)})") == same
    assert find_named(library, "net(0123abcd)") == other
    with pytest.raises(HypernetworkNotFoundError):
        find_named(library, "gone(0123abcd)")


def test_name_decides_between_equal_hashes(tmp_path: Path) -> None:
    first, second = big(tmp_path / "a.pt", 1), big(tmp_path / "b.pt", 1)
    library = Library([tmp_path])
    for name, path in (("a", first), ("b", second), ("c", first)):
        found = find_by_hash(library, name, old_hash(first), Hashes())
        assert found is not None
        assert found.path == path


def test_legacy_hash_of_nothing_identifies_no_file(tmp_path: Path) -> None:
    for name in ("ink.pt", "oil.pt"):
        (tmp_path / name).write_bytes(b"small")
    library = Library([tmp_path])
    assert Hashes().legacy(tmp_path / "ink.pt") == LEGACY_OF_NOTHING == "e3b0c442"
    assert find_by_hash(library, "gone", LEGACY_OF_NOTHING, Hashes()) is None
    assert find_named(library, f"oil({LEGACY_OF_NOTHING})") == tmp_path / "oil.pt"


def test_name_similar_to_a_hash_is_a_name(tmp_path: Path) -> None:
    exact = big(tmp_path / "ink(3fa2c1d0).pt", 1)
    big(tmp_path / "ink.pt", 2)
    assert find_named(Library([tmp_path]), "ink(3fa2c1d0)") == exact


def test_files_are_read_once(tmp_path: Path, read: list[str]) -> None:
    files = [big(tmp_path / "library" / f"{index}.pt", index) for index in range(5)]
    library, cache = Library([tmp_path / "library"]), tmp_path / "cache"
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    hashes = Hashes(cache)
    find_by_hash(library, "0", old_hash(files[4]), hashes)
    assert read == []  # 64 KiB of each are enough
    find_by_hash(library, "3", digests[3][:10], hashes)
    assert read == ["3.pt"]  # its name came first
    find_by_hash(library, "3", "f" * 10, hashes, everywhere=False)
    assert read == ["3.pt"]
    for digest in (digests[4], "f" * 10):
        find_by_hash(library, "gone", digest[:12], hashes)
    assert sorted(read) == [f"{index}.pt" for index in range(5)]
    hashes.save()
    again = Hashes(cache)
    find_by_hash(library, "gone", "f" * 10, again)
    assert len(read) == 5
    big(files[2], 9)
    find_by_hash(library, "gone", "f" * 10, again)
    assert read[5:] == ["2.pt"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"version": 1}',
        '{"version": 1, "files": []}',
        '{"version": 2, "files": {}}',
        '{"version": 1, "files": {"a": 5, "b": [1, 2, 3, "x"]}}',
        "[" * 100_000,
    ],
)
def test_damaged_cache_counts_as_empty(text: str, tmp_path: Path) -> None:
    (tmp_path / "hashes.json").write_text(text)
    path = big(tmp_path / "ink.pt", 1)
    hashes = Hashes(tmp_path)
    assert hashes.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    hashes.save()
    assert str(path) in json.loads((tmp_path / "hashes.json").read_text())["files"]


def test_unwritable_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    hashes = Hashes(tmp_path / "cache")
    hashes.sha256(big(tmp_path / "ink.pt", 1))
    hashes.save()


def test_unreadable_files_are_skipped(tmp_path: Path) -> None:
    library = Library([tmp_path])
    path = big(tmp_path / "ink.pt", 1)
    digest = old_hash(path)
    library.files()
    path.unlink()
    assert find_by_hash(library, "ink", digest, Hashes()) is None
