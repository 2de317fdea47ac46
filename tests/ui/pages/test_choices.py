"""Files in a dropdown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hnloader.embeddings import Embedding, save_embedding
from hnloader.errors import HypernetworkError, HypernetworkNotFoundError
from hnloader.ui.catalog import Catalog
from hnloader.ui.pages.choices import choices, chosen_files
from tests.support.builders import simple_tree, write


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    for name in ("one/ink.pt", "two/ink.pt", "two/wash.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, simple_tree(8))
    (tmp_path / "two" / "bad.pt").write_text("<html>")
    return Catalog(lambda: [tmp_path / "one", tmp_path / "two"])


def test_labels_name_the_folder_where_a_path_is_ambiguous(catalog: Catalog, tmp_path: Path) -> None:
    ambiguous = f"ink.pt ({tmp_path / 'two'})"
    assert ambiguous in choices(catalog)["choices"]
    assert [entry.path for entry in chosen_files(catalog, [ambiguous, "wash.pt"])] == [
        tmp_path / "two" / "ink.pt",
        tmp_path / "two" / "wash.pt",
    ]


def test_files_with_errors_are_left_out(catalog: Catalog) -> None:
    list(catalog.inspect_all())
    assert "bad.pt" not in choices(catalog)["choices"]
    with pytest.raises(HypernetworkError, match=r"bad\.pt"):
        chosen_files(catalog, ["bad.pt"])


def test_embeddings_are_offered_where_a_page_takes_them(catalog: Catalog, tmp_path: Path) -> None:
    for name in ("word.pt", "word.png", "word.bin"):
        save_embedding(Embedding(torch.zeros(2, 768), name="word"), tmp_path / "two" / name)
    for state in ("before inspection", "after it"):
        assert {"word.png", "word.bin"}.isdisjoint(choices(catalog)["choices"]), state
        assert {"word.pt", "word.png", "word.bin"} <= {*choices(catalog, embeddings=True)["choices"]}, state
        list(catalog.inspect_all())
    assert "word.pt" not in choices(catalog)["choices"]
    assert [entry.word for entry in chosen_files(catalog, ["word.png", "wash.pt"], embeddings=True)] == ["word", ""]
    for name in ("word.pt", "word.png"):
        with pytest.raises(HypernetworkError, match="embedding"):
            chosen_files(catalog, [name])


def test_a_missing_file_is_refused(catalog: Catalog) -> None:
    with pytest.raises(HypernetworkNotFoundError, match=r"gone\.pt"):
        chosen_files(catalog, ["gone.pt"])
