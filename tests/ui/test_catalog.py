"""The library's files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from hnloader.embeddings import Embedding, save_embedding
from hnloader.ui import markup
from hnloader.ui.catalog import BAD, DUPLICATES, EMBEDDINGS, OTHER_WIDTHS, Catalog
from hnloader.ui.pages.choices import choices
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
def catalog(shelf: Path) -> Catalog:
    catalog = Catalog(lambda: [shelf])
    list(catalog.inspect_all())
    return catalog


def labels(entries) -> list[str]:
    return [entry.label for entry in entries]


def test_listing_opens_no_file(shelf: Path, reads: list[str]) -> None:
    assert labels(Catalog(lambda: [shelf]).search()) == ["A.pt", "b.pt", "bad.pt", "sub/c.pt"]
    assert reads == []


def test_inspects_a_file_once_until_it_changes(shelf: Path, reads: list[str]) -> None:
    catalog = Catalog(lambda: [shelf])
    list(catalog.inspect_all())
    list(catalog.inspect_all())
    assert sorted(reads) == ["A.pt", "b.pt", "bad.pt", "c.pt"]
    reads.clear()
    write(shelf / "A.pt", simple_tree(2048))
    catalog.refresh()
    list(catalog.inspect_all())
    assert sorted(reads) == ["A.pt", "bad.pt"]  # errors are checked again
    assert labels(catalog.search(only="SDXL")) == ["A.pt"]


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
def test_search_finds_every_word(catalog: Catalog, query: str, found: list[str]) -> None:
    assert labels(catalog.search(query)) == found


@pytest.mark.parametrize(
    ("sort", "first"), [("name", "A.pt"), ("newest", "b.pt"), ("largest", "sub/c.pt"), ("most steps", "A.pt")]
)
def test_sorting(catalog: Catalog, sort: str, first: str) -> None:
    assert labels(catalog.search(sort=sort))[0] == first


def test_files_without_a_family_sort_last(catalog: Catalog) -> None:
    assert labels(catalog.search(sort="model family")) == ["b.pt", "sub/c.pt", "A.pt", "bad.pt"]


@pytest.mark.parametrize(("only", "found"), [("SD 1", ["b.pt"]), (BAD, ["bad.pt"]), (OTHER_WIDTHS, ["A.pt"])])
def test_filters(catalog: Catalog, only: str, found: list[str]) -> None:
    assert labels(catalog.search(only=only)) == found


def test_duplicates_are_files_with_the_same_bytes(catalog: Catalog, shelf: Path) -> None:
    shutil.copy(shelf / "b.pt", shelf / "sub" / "copy of b.pt")
    near = bytearray((shelf / "b.pt").read_bytes())
    near[200_000] ^= 1  # the same size, and the same at the beginning, in the middle and at the end
    (shelf / "near.pt").write_bytes(near)
    assert len(near) > 3 * 2**16 + 200_000
    catalog.refresh()
    assert labels(catalog.search(only=DUPLICATES)) == ["b.pt", "sub/copy of b.pt"]
    copy = next(entry for entry in catalog.search("copy of b"))
    assert labels(catalog.copies(copy)) == ["b.pt"]


def test_keys_name_only_files_of_the_library(catalog: Catalog, shelf: Path) -> None:
    entry = catalog.search("c.pt")[0]
    assert catalog.get(entry.key) == entry
    for key in (None, "", str(entry.path), "../c.pt", "0" * 16):
        assert catalog.get(key) is None
    entry.path.unlink()
    catalog.refresh()
    assert catalog.get(entry.key) is None


def test_a_missing_file_has_an_error(shelf: Path) -> None:
    catalog = Catalog(lambda: [shelf])
    entry = catalog.search("A.pt")[0]
    entry.path.unlink()
    looked = catalog.get(entry.key)
    assert looked is not None
    assert looked.problem is not None
    assert str(entry.path) in looked.problem


def test_search_finds_new_notes(catalog: Catalog, shelf: Path) -> None:
    catalog.save_notes(catalog.search("b.pt")[0], "for portraits")
    assert labels(catalog.search("portraits")) == ["b.pt"]
    assert read_notes(shelf / "b.pt") == "for portraits"


def test_refresh_lists_new_folders(shelf: Path, tmp_path: Path) -> None:
    folders = [shelf]
    catalog = Catalog(lambda: folders)
    assert catalog.counts().files == 4
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "d.pt", simple_tree(8))
    folders.append(tmp_path / "other")
    catalog.refresh()
    assert catalog.counts().files == 5


def test_embeddings_are_files_of_their_own_kind(catalog: Catalog, shelf: Path) -> None:
    save_embedding(Embedding(torch.zeros(4, 768), step=1200), shelf / "word.pt")
    (shelf / "broken.pt").write_bytes((shelf / "word.pt").read_bytes()[:-100])
    catalog.refresh()
    list(catalog.inspect_all())
    (entry,) = catalog.search(only=EMBEDDINGS)
    assert entry.label == "word.pt" and entry.embedding is not None and not entry.broken
    assert labels(catalog.search(only=BAD)) == ["bad.pt", "broken.pt"] and catalog.counts().bad == 2
    assert labels(catalog.search(only="SD 1")) == ["b.pt"]
    shown = markup.cards([entry], None) + markup.headline(entry) + markup.details(entry, [], "0" * 64)
    for text in ("embedding, 4 vectors", "SD 1", "4 of 768 (float32)", "1,200 steps", "<td>word</td>"):
        assert text in shown
    assert "hnl-broken" not in shown and "cannot be used" not in shown
    # No dropdown of hypernetworks offers it.
    assert "word.pt" not in choices(catalog)["choices"]
