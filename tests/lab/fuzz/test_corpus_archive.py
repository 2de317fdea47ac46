from __future__ import annotations

from pathlib import Path

import pytest

from lab.fuzz import __main__, corpus_archive
from lab.fuzz.corpus_archive import CORPUS, read_corpus, unpack_corpus, write_corpus


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpus_archive, "CORPUS", tmp_path)
    return tmp_path


def test_writing_the_kept_inputs_again_gives_the_same_bytes(corpus: Path) -> None:
    kept = {path.stem: path.read_bytes() for path in CORPUS.glob("*.zip")}
    for name, archive in kept.items():
        (corpus / f"{name}.zip").write_bytes(archive)
        write_corpus(name, reversed(read_corpus(name).values()))
        assert (corpus / f"{name}.zip").read_bytes() == archive


def test_unpacked_inputs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("known")
    write_corpus("zip", [b"one", b"two", b"one"])
    unpack_corpus("zip", folder)
    assert {path.read_bytes() for path in folder.iterdir()} == {b"one", b"two"}
    assert read_corpus("missing") == {}


def test_keep_adds_the_smallest_inputs(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "LARGEST_CORPUS", 3)
    fresh = tmp_path_factory.mktemp("fresh")
    for data in (b"longest", b"short", b"longer"):
        (fresh / data.decode()).write_bytes(data)
    write_corpus("zip", [b"kept for long"])
    __main__._keep("zip", fresh)
    assert set(read_corpus("zip").values()) == {b"kept for long", b"short", b"longer"}
