"""Files of up to 16 MiB that would take all memory or all time: each ends in a result or an error of ours.

Not timed: what is made has a length, what is read is counted.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hnloader
from extension import redaction
from hnloader.cli.app import app
from hnloader.errors import CorruptFileError, HypernetworkError
from hnloader.formats import hns
from hnloader.inspection import FileInfo
from hnloader.library import Library
from hnloader.network import Architecture, Hypernetwork
from hnloader.texts import as_text, plain, shown, takes
from hnloader.ui import markup
from hnloader.ui.catalog import Catalog
from tests.support.errors import raises

LONG = "a" * (1 << 20)


def _deep(part: object, times: int, depth: int) -> object:
    """Return nested lists, each mentioned `times` times in the next."""
    for _ in range(depth):
        part = [part] * times
    return part


TREES: dict[str, Callable[[], Any]] = {
    "one text, 3,000 times": lambda: [LONG] * 3_000,
    "a dict of one text": lambda: dict.fromkeys(range(3000), LONG),
    "one text as all keys": lambda: {(LONG, number): number for number in range(3_000)},
    "lists that share their parts": lambda: _deep("x", 10, 60),
    "empty lists that share their parts": lambda: _deep([], 10, 60),
    "tuples as keys": lambda: {_as_tuple("x", 9): 1},
    "a deep list": lambda: _deep(LONG, 1, 60),
    "a wide dict": lambda: dict.fromkeys(range(400_000)),
    "a large number": lambda: [10**5_000, -(10**5_000), {10**5_000: 1}],
    "bytes": lambda: [b"x" * (16 << 20), bytearray(16 << 20)],
    "a set": lambda: {frozenset({LONG}), LONG},
    "an exception": lambda: KeyError((LONG,)),
}


def _as_tuple(part: object, depth: int) -> object:
    for _ in range(depth):
        part = (part, part, part)
    return part


@pytest.mark.parametrize("name", TREES)
def test_texts_are_bounded(name: str) -> None:
    tree = TREES[name]()
    for limit in (1, 2, 40, 5_000):
        assert len(shown(tree, limit)) <= limit
        assert len(as_text(tree, limit)) <= limit
    made = plain(tree, 100_000)
    assert len(json.dumps(made)) < 3_000_000
    assert takes(tree, 100) is False


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, 1e300, "", "a'b\"c\n", b"\x00", (), (1,), [1, "2"], {1: [2]}, {"a"}, frozenset(), 2**64],
)
def test_short_values_equal_repr(value: object) -> None:
    assert shown(value) == (repr(value) if value != frozenset() else "{}")
    assert as_text(value) == (value if isinstance(value, str) else shown(value))
    assert as_text(Path("a/b")) == "a/b"


def test_plain_values_are_copied_whole_within_the_room() -> None:
    value = {"a": [1, 2.5, None, True, "text"], 3: {"b": ()}, "far": float("inf"), "set": {1}, "bytes": b"x"}
    assert plain(value, 10_000) == {
        "a": [1, 2.5, None, True, "text"], "3": {"b": []}, "far": "inf", "set": [1], "bytes": "b'x'",
    }  # fmt: skip
    assert plain(["abc", "def"], 6) == ["abc", "…"]
    assert takes(["abc", "def"], 10) and not takes(["abc", "def"], 6)


# -- the doors


@pytest.fixture(params=[name for name in TREES if name != "an exception"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> FileInfo:
    """Return the result of a reader for a sound file with such metadata."""
    tree = TREES[request.param]()
    path = tmp_path / "style.pt"
    path.write_bytes(b"x")
    return FileInfo(
        path=path, name=LONG, size=1, format="pt", container="zip", program="A1111 webui", variant=LONG,
        widths=(768,), scopes=("768",), families=("SD 1",),
        architecture=Architecture((1, 2, 1), "relu", dropout=(0, 0, 0)), step=1,
        checkpoint=LONG, checkpoint_name=LONG, parameters=1, dtypes=("float32",),
        metadata={"name": LONG, "tree": tree, LONG: tree} | {f"key {number}": tree for number in range(300)},
    )  # fmt: skip


def test_json_api_and_cards_are_bounded(odd: FileInfo, tmp_path: Path) -> None:
    told = odd.to_dict(hashes=False)
    assert told["format"] == "pt" and told["widths"] == [768]
    assert len(json.dumps(told)) < 64 << 20

    assert len(json.dumps(redaction.redacted_values([tmp_path], odd))) < 64 << 20


def test_page_is_bounded(odd: FileInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnloader.ui.catalog.inspect", lambda path, folders: odd)
    catalog = Catalog(lambda: [tmp_path], tmp_path / "cache")
    (entry,) = (catalog.inspect(each) for each in catalog.entries())
    assert len(markup.cards([entry], None)) < 10_000
    assert len(markup.details(entry, [], "0" * 64)) < 300_000
    assert len(catalog.search("ink")) == 0
    catalog.save()
    (index,) = (tmp_path / "cache").iterdir()
    assert index.stat().st_size < 1_000


def test_command_line_is_bounded(odd: FileInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert odd.path is not None
    monkeypatch.setattr(hnloader, "inspect", lambda path, folders: odd)
    assert len(CliRunner().invoke(app, ["inspect", str(odd.path)]).stdout) < 500_000
    assert len(CliRunner().invoke(app, ["inspect", str(odd.path.parent)]).stdout) < 10_000
    assert len(CliRunner().invoke(app, ["inspect", str(odd.path), "--json"]).stdout) < 64 << 20


def test_messages_are_bounded(tmp_path: Path) -> None:
    for key in (LONG, (LONG, LONG), 5.0):
        import torch

        torch.save({key: 1, "x": [LONG] * 10}, tmp_path / "style.pt", pickle_protocol=pickle.HIGHEST_PROTOCOL)
        with pytest.raises(HypernetworkError) as raised:
            hnloader.inspect(tmp_path / "style.pt")
        assert len(str(raised.value)) < 1_000
    with pytest.raises(HypernetworkError) as raised:
        Library([tmp_path]).find(LONG)
    assert len(str(raised.value)) < 1_000


# -- compositions


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    made = Hypernetwork.new((16,), Architecture((1, 2, 1), "relu", dropout=(0, 0, 0)), name="ink")
    hnloader.save(made, tmp_path / "ink.pt")
    return tmp_path / "ink.pt"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened."""
    opened: list[str] = []

    def watched(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(path).name)
        return open(path, *args, **kwargs)  # noqa: PTH123

    monkeypatch.setattr("hnloader.files.open", watched, raising=False)
    return opened


@pytest.mark.parametrize("read", [hnloader.load, hnloader.inspect])
def test_each_member_is_read_once(read: Any, ink: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by another name, and through other compositions."""
    (ink.parent / "top.hns").write_text("[left, right, ink, ink.pt, {ink, ink.pt}, left.hns]")
    (ink.parent / "left.hns").write_text("[ink, low, low]")
    (ink.parent / "right.hns").write_text("[low, {ink: 1, low: 2}]")
    (ink.parent / "low.hns").write_text("[ink, ink]")
    opened = counted(monkeypatch)
    read(ink.parent / "top.hns")
    assert sorted(opened) == ["ink.pt", "left.hns", "low.hns", "right.hns", "top.hns"]


@pytest.mark.parametrize("read", [hnloader.load, hnloader.inspect])
def test_endless_unfolding_is_refused(read: Any, ink: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ink.parent / "c0.hns").write_text("[" + ", ".join(["ink"] * 90) + "]")
    for number in range(1, 7):
        (ink.parent / f"c{number}.hns").write_text("[" + ", ".join([f"c{number - 1}"] * 90) + "]")
    opened = counted(monkeypatch)
    with raises(CorruptFileError, "c1.hns", "8,100 members"):
        read(ink.parent / "c6.hns")
    assert len(opened) <= 8
    (ink.parent / "c1.hns").write_text("[" + ", ".join(["c0"] * 11) + "]")
    assert read(ink.parent / "c1.hns").widths == (16,)  # 990


@pytest.mark.parametrize("read", [hnloader.load, hnloader.inspect])
def test_depth_counts_members_that_were_read_before(read: Any, ink: Path) -> None:
    (ink.parent / "d1.hns").write_text("[ink, ink]")
    for number in range(2, 9):
        (ink.parent / f"d{number}.hns").write_text(f"[d{number - 1}, ink]")
    assert read(ink.parent / "d8.hns").widths == (16,)
    (ink.parent / "d9.hns").write_text("[" + ", ".join(f"d{number}" for number in range(1, 9)) + "]")
    with raises(CorruptFileError, "more than 8 deep"):
        read(ink.parent / "d9.hns")
    (ink.parent / "a.hns").write_text("[ink, b]")
    (ink.parent / "b.hns").write_text("[ink, a]")
    with raises(CorruptFileError):
        read(ink.parent / "a.hns")


@pytest.mark.parametrize("read", [hnloader.load, hnloader.inspect])
def test_too_many_widths_are_refused(read: Any, ink: Path) -> None:
    made = Hypernetwork.new(range(1, 70), Architecture((1, 1), None, dropout=(0, 0)), name="wide")
    hnloader.save(made, ink.parent / "wide.pt")
    (ink.parent / "both.hns").write_text("[ink, wide]")
    with raises(CorruptFileError, "69 widths"):
        read(ink.parent / "both.hns")


def test_long_names_make_short_messages(ink: Path) -> None:
    name = "n" * 60_000
    (ink.parent / "long.hns").write_text(f"[{name}]")
    for read in (hnloader.load, hnloader.inspect):
        with pytest.raises(HypernetworkError) as raised:
            read(ink.parent / "long.hns")
        assert len(str(raised.value)) < 1_000
    for text in (
        f"[({name}, {name})]",
        f"[({name}, {name}, {name})]",
        f"{{{name}: x}}",
        "[" * 60_000,
        f"['{name}\\x']",
    ):
        (ink.parent / "long.hns").write_text(text)
        with pytest.raises(HypernetworkError) as raised:
            hnloader.load(ink.parent / "long.hns")
        assert len(str(raised.value)) < 1_000
    assert hns.MAX_SIZE == 64 << 10
