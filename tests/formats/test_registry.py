"""A new format is one module; everything else asks the registry for it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import hnloader
from hnloader import UnknownFormatError
from hnloader.cli.app import app
from hnloader.formats import registry
from hnloader.formats.contents import Contents
from hnloader.formats.registry import FileFormat, format_named, format_of, formats, register, suffixes
from hnloader.formats.source import Source, open_source
from hnloader.library import Library
from hnloader.scanning import scan

# The whole of a format: what a contributor would put into hnloader/formats/toy.py.
MODULE = """
from hnloader.formats.contents import Contents, all_named_tensors
from hnloader.formats.registry import FileFormat
from hnloader.network import SIDES
from hnloader.scopes import Scope
import io, torch

def detect(source):
    return source.head.startswith(b"TOY1")

def read(source):
    lines = source.read(0, source.size).decode().splitlines()
    tensors = {}
    for line in lines[1:]:
        width, side, name, shape, values = line.split(";")
        sizes = [int(size) for size in shape.split(",")]
        tensor = torch.tensor([float(value) for value in values.split(",")]).reshape(sizes)
        tensors.setdefault((Scope.parse(width), side), {})[name] = Entry(tensor)
    sides, old_names = all_named_tensors(tensors)
    return Contents(
        label=source.label,
        format="toy",
        container="text",
        program="toy maker",
        variant="first",
        metadata={},
        sides=sides,
        old_names=old_names,
        read=lambda entry: entry.tensor,
    )

class Entry:
    def __init__(self, tensor):
        self.tensor, self.shape, self.dtype, self.count = tensor, tuple(tensor.shape), "float32", tensor.numel()

def write(outgoing, path):
    lines = ["TOY1"]
    for scope in outgoing.scopes:
        for side in SIDES:
            for name, lazy in outgoing.sides[scope, side].items():
                values = ",".join(repr(value) for value in lazy.get().flatten().tolist())
                lines.append(f"{scope};{side};{name};{','.join(map(str, lazy.shape))};{values}")
    path.write_text(chr(10).join(lines))

FORMAT = FileFormat(name="toy", label="toy", suffixes=(".toy",), detect=detect, read=read, write=write)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileFormat]:
    """Put one module into the package of the formats."""
    import hnloader.formats

    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "toy.py").write_text(MODULE)
    monkeypatch.setattr(hnloader.formats, "__path__", [*hnloader.formats.__path__, str(folder)])
    registry._built_in.cache_clear()
    yield format_named("toy")
    registry._built_in.cache_clear()


@pytest.fixture
def small() -> hnloader.Hypernetwork:
    torch.manual_seed(0)
    return hnloader.Hypernetwork.new((4,), hnloader.Architecture())


def test_one_new_module_is_loaded_inspected_listed_converted_and_saved(
    toy: FileFormat, small: hnloader.Hypernetwork, tmp_path: Path
) -> None:
    file = tmp_path / "library" / "small.toy"
    file.parent.mkdir()
    hnloader.save(small, file)
    assert_same_tensors(hnloader.load(file), small)
    info = hnloader.inspect(file)
    assert (info.format, info.container, info.widths) == ("toy", "text", (4,))
    assert Library([file.parent]).find("small") == file
    assert scan(file).verdict == "safe"
    for suffix in (".pt", ".safetensors"):
        other = tmp_path / f"other{suffix}"
        assert hnloader.convert(file, other).verified
        back = tmp_path / f"back{suffix}.toy"
        hnloader.convert(other, back, verify=False)
        assert_same_tensors(hnloader.load(back), small)


def test_the_command_line_and_the_page_offer_a_new_format(
    toy: FileFormat, small: hnloader.Hypernetwork, tmp_path: Path
) -> None:
    from hnloader.ui.pages import convert_page

    hnloader.save(small, tmp_path / "small.pt")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "small.pt"), "--to", "toy", "--no-verify"])
    assert result.exit_code == 0, result.output
    assert_same_tensors(hnloader.load(tmp_path / "small.toy"), small)
    assert convert_page._targets()["toy"] == ".toy"


def test_messages_about_empty_folders_name_a_new_format(toy: FileFormat, tmp_path: Path) -> None:
    from hnloader.ui.catalog import Catalog
    from hnloader.ui.page_host import Host
    from hnloader.ui.pages.library_page import _Library

    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments in (["convert", str(empty), "--to", "pt"], ["inspect", str(empty)]):
        assert ".toy" in CliRunner().invoke(app, arguments).output
    page = _Library(Host(folders=lambda: [empty], output=lambda: empty), Catalog(lambda: [empty]))
    assert ".toy" in page._empty()


def test_a_composition_finds_members_of_a_new_format(
    toy: FileFormat, small: hnloader.Hypernetwork, tmp_path: Path
) -> None:
    hnloader.save(small, tmp_path / "small.toy")
    (tmp_path / "both.hns").write_text("[small, small]")
    assert hnloader.inspect(tmp_path / "both.hns").members == (tmp_path / "small.toy",)


def test_a_format_is_registered_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", [])
    mine = FileFormat(name="mine", label="mine", suffixes=(".mine",), detect=lambda source: False, read=_unread)
    register(mine)
    assert mine in formats()
    assert ".mine" in suffixes()
    with pytest.raises(UnknownFormatError):  # it is only read
        registry.format_to_write(Path("a.mine"))
    with pytest.raises(ValueError):
        register(mine)


def test_compositions_are_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", [])
    register(FileFormat(name="mine", label="mine", suffixes=(".mine",), detect=_begins_like_mine, read=_unread))
    for text, expected in ((b'{"mine": 1}', "mine"), (b'{"ink": 1}', "hns")):
        with open_source(io.BytesIO(text)) as source:
            found = format_of(source)
        assert found is not None and found.name == expected


def test_a_format_holds_weights_or_a_composition() -> None:
    with pytest.raises(ValueError):
        FileFormat(name="neither", label="neither", suffixes=(".none",), detect=lambda source: False)


def test_the_library_prefers_safetensors_then_pt_then_hns() -> None:
    assert suffixes()[:3] == (".safetensors", ".pt", ".hns")
    assert suffixes(weights_only=True)[:2] == (".safetensors", ".pt")


def _begins_like_mine(source: Source) -> bool:
    return source.head.startswith(b'{"mine"')


def _unread(source: object) -> Contents:
    raise AssertionError


def assert_same_tensors(found: hnloader.Hypernetwork, expected: hnloader.Hypernetwork) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
