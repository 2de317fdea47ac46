"""Find files by name: matches, preferences and errors."""

from __future__ import annotations

import os
import threading
import unicodedata
from pathlib import Path

import pytest

from hnloader.errors import HypernetworkError, HypernetworkNotFoundError
from hnloader.library import Library
from hnloader.prompt import Tag, parse_prompt


def place(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(library: Library, name: str, folder: Path) -> str:
    return library.find(name).relative_to(folder).as_posix()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ink", "ink.pt"),
        ("INK", "ink.pt"),
        (" ink ", "ink.pt"),
        ("ink.pt", "ink.pt"),
        ("ink.v2", "ink.v2.pt"),
        ("deep", "sketches/old/deep.safetensors"),
        ("old/deep", "sketches/old/deep.safetensors"),
        ("sketches/old/deep.safetensors", "sketches/old/deep.safetensors"),
        ("sketches\\old\\deep", "sketches/old/deep.safetensors"),
        ("mix", "mix.HNS"),
    ],
)
def test_a_file_has_its_stem_its_name_and_its_subfolders_as_names(tmp_path: Path, name: str, path: str) -> None:
    place(tmp_path, "ink.pt", "ink.v2.pt", "sketches/old/deep.safetensors", "mix.HNS", "notes.txt", "photo.png")
    assert found(Library([tmp_path]), name, tmp_path) == path


def test_equal_unicode_spellings_match(tmp_path: Path) -> None:
    place(tmp_path, unicodedata.normalize("NFD", "grüne Straße") + ".pt")
    library = Library([tmp_path])
    assert library.find(unicodedata.normalize("NFC", "grüne Straße")) == library.find("GRÜNE STRASSE")


def test_exact_case_wins_over_everything_else(tmp_path: Path) -> None:
    place(tmp_path, "Ink.safetensors", "deep/below/ink.pt")
    library = Library([tmp_path])
    assert found(library, "ink", tmp_path) == "deep/below/ink.pt"
    assert found(library, "Ink", tmp_path) == "Ink.safetensors"
    assert found(library, "INK", tmp_path) == "Ink.safetensors"


def test_folder_depth_format_and_alphabet_decide(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    place(first, "a/b/ink.pt")
    place(second, "ink.safetensors", "ink.pt", "ink.hns", "z/ink.safetensors", "y/ink.safetensors")
    order = [file.path.relative_to(tmp_path).as_posix() for file in Library([first, second]).matches("ink")]
    assert order == [
        "first/a/b/ink.pt",
        "second/ink.safetensors",
        "second/ink.pt",
        "second/ink.hns",
        "second/y/ink.safetensors",
        "second/z/ink.safetensors",
    ]
    assert Library([first, second]).names() == ["ink"]


def test_an_unknown_name_lists_the_folders_and_similar_names(tmp_path: Path) -> None:
    place(tmp_path, "halftone.pt", "outline.pt", "Watercolor.pt")
    missing = tmp_path / "gone"
    with pytest.raises(HypernetworkNotFoundError) as error:
        Library([tmp_path, missing]).find("halftones")
    assert isinstance(error.value, HypernetworkError)
    for fact in ("'halftones'", "'halftone'?", f"{tmp_path} (3 files), {missing} ("):
        assert fact in str(error.value)
    with pytest.raises(HypernetworkNotFoundError, match=r"More: --folder\.$"):
        Library([tmp_path], hint="More: --folder.").find("halftones")
    assert Library([tmp_path]).suggestions("color") == ["Watercolor"]
    assert Library([tmp_path]).suggestions("sub/outlin") == ["outline"]
    assert Library([tmp_path]).suggestions("qqqq") == []


def test_files_outside_the_folders_are_not_found(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    place(tmp_path, "secret.pt", "inside/ink.pt")
    library = Library([inside])
    for name in (
        "../secret",
        "../secret.pt",
        str(tmp_path / "secret.pt"),
        "x/../../secret",
        "C:\\secret.pt",
        "..\\secret",
    ):
        with pytest.raises(HypernetworkNotFoundError, match="inside"):
            library.find(name)
    for name in ("", ".", "/", "\x00", "secret"):
        with pytest.raises(HypernetworkNotFoundError):
            library.find(name)


def test_loops_of_links_end_and_linked_folders_are_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    place(folder, "sub/ink.pt")
    place(elsewhere, "linked.pt")
    (folder / "aaa-loop").symlink_to(folder, target_is_directory=True)
    (folder / "sub" / "again").symlink_to(folder / "sub", target_is_directory=True)
    (folder / "circle.pt").symlink_to(folder / "circle.pt")
    (folder / "broken.pt").symlink_to(folder / "nowhere.pt")
    (folder / "more").symlink_to(elsewhere, target_is_directory=True)
    paths = [file.relative.as_posix() for file in Library([folder]).files()]
    assert paths == ["more/linked.pt", "sub/ink.pt"]


def test_folders_are_listed_once_until_refreshed(tmp_path: Path) -> None:
    place(tmp_path, "ink.pt")
    library = Library([tmp_path])
    assert library.names() == ["ink"]
    place(tmp_path, "new.pt")
    assert library.names() == ["ink"]
    library.refresh()
    assert library.names() == ["ink", "new"]


def test_two_thousand_files_are_listed_with_one_scan_per_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path, *(f"{number % 20}/style {number}.pt" for number in range(2000)))
    looks = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: looks.append(place) or scandir(place))
    library = Library([tmp_path])
    assert [library.find(f"style {number}").name for number in range(2000)] == [
        f"style {number}.pt" for number in range(2000)
    ]
    assert len(looks) == 21


def test_an_unreadable_folder_counts_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path, "ink.pt", "closed/hidden.pt")
    scandir = os.scandir

    def guarded(place: Path) -> object:
        if Path(place).name == "closed":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    assert Library([tmp_path]).names() == ["ink"]


def test_the_name_of_a_file_is_the_shortest_match(tmp_path: Path) -> None:
    for name in ("ink.pt", "ink.safetensors", "sketches/ink.pt", "sketches/wash.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    library = Library([tmp_path])
    names = {file.relative.as_posix(): library.name_of(file.path) for file in library.files()}
    assert names == {
        "ink.safetensors": "ink",
        "ink.pt": "ink.pt",
        "sketches/ink.pt": "sketches/ink",
        "sketches/wash.pt": "wash",
    }
    assert all(library.find(name) == tmp_path / path for path, name in names.items())
    with pytest.raises(HypernetworkNotFoundError, match=r"gone\.pt"):
        library.name_of(tmp_path / "gone.pt")


def test_files_are_found_while_other_threads_refresh(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.pt").touch()
    library = Library([tmp_path])
    wrong: list[object] = []
    done = threading.Event()

    def refresh() -> None:
        while not done.is_set():
            library.refresh()
            library.files()

    def find() -> None:
        try:
            for number in range(1_000):
                assert library.find(f"{number % 200}").name == f"{number % 200}.pt"
        except Exception as error:
            wrong.append(error)

    others = [threading.Thread(target=act) for act in (refresh, refresh, find, find)]
    for thread in others:
        thread.start()
    for thread in others[2:]:
        thread.join()
    done.set()
    for thread in others[:2]:
        thread.join()
    assert wrong == []


def test_a_stem_with_spaces_around_it_is_found(tmp_path: Path) -> None:
    for name in ("n .pt", " m.pt", "o.pt", "o .pt", "p .safetensors"):
        (tmp_path / name).write_bytes(b"")
    library = Library([tmp_path])
    for name, wanted in [
        ("n ", "n .pt"),
        ("n", "n .pt"),
        (" n  ", "n .pt"),
        ("N ", "n .pt"),
        ("n .pt", "n .pt"),
        ("m", " m.pt"),
        (" m", " m.pt"),
        ("o", "o.pt"),
        ("o ", "o .pt"),
        (" o", "o.pt"),
        ("p ", "p .safetensors"),
    ]:
        assert library.find(name).name == wanted, name
    for file in library.files():
        (tag,) = parse_prompt(str(Tag(library.shortest_name(file)))).tags
        assert library.first(tag.name) == file
