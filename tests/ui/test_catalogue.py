"""What the library page shows, without a page."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hnloader.ui.catalogue import BAD, DUPLICATES, OTHER_WIDTHS, Catalogue
from hnloader.ui.sidecars import read_notes
from tests.support.builders import simple_tree, write


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    (folder / "sub").mkdir(parents=True)
    write(folder / "b.pt", simple_tree(768, step=5, sd_checkpoint_name="Anything"))
    write(folder / "A.pt", simple_tree(8, step=70))
    write(folder / "sub" / "c.pt", simple_tree(1024, step=6, name="Größe"))
    (folder / "bad.pt").write_bytes(b"nothing")
    os.utime(folder / "b.pt", (2_000_000_000, 2_000_000_000))
    return folder


@pytest.fixture
def catalogue(shelf: Path) -> Catalogue:
    catalogue = Catalogue(lambda: [shelf])
    list(catalogue.look_into_all())
    return catalogue


def labels(entries) -> list[str]:
    return [entry.label for entry in entries]


def test_listing_reads_no_file(shelf: Path, reads: list[str]) -> None:
    assert labels(Catalogue(lambda: [shelf]).search()) == ["A.pt", "b.pt", "bad.pt", "sub/c.pt"]
    assert reads == []


def test_a_file_is_looked_into_once_until_it_changes(shelf: Path, reads: list[str]) -> None:
    catalogue = Catalogue(lambda: [shelf])
    list(catalogue.look_into_all())
    list(catalogue.look_into_all())
    assert sorted(reads) == ["A.pt", "b.pt", "bad.pt", "c.pt"]
    reads.clear()
    write(shelf / "A.pt", simple_tree(2048))
    catalogue.refresh()
    list(catalogue.look_into_all())
    assert sorted(reads) == ["A.pt", "bad.pt"]  # a bad one may have become good without a change
    assert labels(catalogue.search(only="SDXL")) == ["A.pt"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["A.pt", "b.pt", "bad.pt", "sub/c.pt"]),
        ("a.PT", ["A.pt"]),
        ("sub c", ["sub/c.pt"]),
        ("anything", ["b.pt"]),
        ("sub sd", ["sub/c.pt"]),
        ("GRÖSSE", ["sub/c.pt"]),
        ("relu", ["A.pt", "b.pt", "sub/c.pt"]),
        ("sub nothing", []),
    ],
)
def test_search_finds_every_word(catalogue: Catalogue, query: str, found: list[str]) -> None:
    assert labels(catalogue.search(query)) == found


@pytest.mark.parametrize(
    ("sort", "first"), [("name", "A.pt"), ("newest", "b.pt"), ("largest", "sub/c.pt"), ("most steps", "A.pt")]
)
def test_sorting(catalogue: Catalogue, sort: str, first: str) -> None:
    assert labels(catalogue.search(sort=sort))[0] == first


def test_by_family_comes_what_fits_no_model_last(catalogue: Catalogue) -> None:
    assert labels(catalogue.search(sort="model family")) == ["b.pt", "sub/c.pt", "A.pt", "bad.pt"]


@pytest.mark.parametrize(("only", "found"), [("SD 1", ["b.pt"]), (BAD, ["bad.pt"]), (OTHER_WIDTHS, ["A.pt"])])
def test_filters(catalogue: Catalogue, only: str, found: list[str]) -> None:
    assert labels(catalogue.search(only=only)) == found


def test_duplicates_are_files_with_the_same_bytes(catalogue: Catalogue, shelf: Path) -> None:
    shutil.copy(shelf / "b.pt", shelf / "sub" / "copy of b.pt")
    near = bytearray((shelf / "b.pt").read_bytes())
    near[200_000] ^= 1  # the same size, and the same at the beginning, in the middle and at the end
    (shelf / "near.pt").write_bytes(near)
    assert len(near) > 3 * 2**16 + 200_000
    catalogue.refresh()
    assert labels(catalogue.search(only=DUPLICATES)) == ["b.pt", "sub/copy of b.pt"]
    copy = next(entry for entry in catalogue.search("copy of b"))
    assert labels(catalogue.twins(copy)) == ["b.pt"]


def test_keys_stand_for_files_of_the_library_alone(catalogue: Catalogue, shelf: Path) -> None:
    entry = catalogue.search("c.pt")[0]
    assert catalogue.get(entry.key) == entry
    for key in (None, "", str(entry.path), "../c.pt", "0" * 16):
        assert catalogue.get(key) is None
    entry.path.unlink()
    catalogue.refresh()
    assert catalogue.get(entry.key) is None


def test_a_file_that_vanishes_is_a_bad_one(shelf: Path) -> None:
    catalogue = Catalogue(lambda: [shelf])
    entry = catalogue.search("A.pt")[0]
    entry.path.unlink()
    looked = catalogue.get(entry.key)
    assert looked is not None
    assert looked.problem is not None
    assert str(entry.path) in looked.problem


def test_notes_are_found_by_search_at_once(catalogue: Catalogue, shelf: Path) -> None:
    catalogue.annotate(catalogue.search("b.pt")[0], "for portraits")
    assert labels(catalogue.search("portraits")) == ["b.pt"]
    assert read_notes(shelf / "b.pt") == "for portraits"


def test_folders_are_asked_for_anew_at_each_refresh(shelf: Path, tmp_path: Path) -> None:
    folders = [shelf]
    catalogue = Catalogue(lambda: folders)
    assert catalogue.counts().files == 4
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "d.pt", simple_tree(8))
    folders.append(tmp_path / "other")
    catalogue.refresh()
    assert catalogue.counts().files == 5
