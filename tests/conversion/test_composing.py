"""A `.hns` composition gives the bits of its chain, or is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hnloader
from hnloader import Architecture, Hypernetwork, HypernetworkError
from hnloader.conversion.composing import composition
from hnloader.conversion.merging import Part
from hnloader.errors import NotMergeableError
from hnloader.library import Library

SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def make(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Hypernetwork.new((8,), Architecture((1, 2, 1), "relu"), name="same name", metadata={})
    suffix = path.suffix.lower() if path.suffix.lower() in (".pt", ".safetensors") else ".pt"
    hnloader.save(new, path.with_name(f"making{suffix}"))
    return path.with_name(f"making{suffix}").rename(path)


def part(path: Path, strength: float = 1.0, folders: tuple[Path, ...] = ()) -> Part:
    return Part(hnloader.load(path, folders), strength, strength, path=path)


def assert_kept(parts: list[Part], target: Path) -> None:
    """Written and read again, the composition gives the bits of the chain."""
    target.write_text(composition(parts, target), encoding="utf-8")
    found = hnloader.load(target)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    for side in ("k", "v"):
        wanted = x
        for each in parts:
            wanted = each.hypernetwork.transform(side, wanted, each.k)
        assert torch.equal(found.transform(side, x), wanted)


ODD_NAMES = [
    "[x].pt",
    "{x}.pt",
    "(x).pt",
    "[(x, 0.5)].safetensors",
    "['b'].pt",
    "a'b.pt",
    'a"b.pt',
    "a'\"b.pt",
    "a,b.pt",
    "a:b.pt",
    "a\\b.pt",
    "a\\nb.pt",
    "a\nb.pt",
    " a.pt",
    "a .pt",
    "  .pt",
    "\u3000a\u3000.pt",
    "\u00a0.pt",
    "..pt",
    "a.pt.pt",
    "a.hns.pt",
    ".hidden.pt",
    "#.pt",
    "%s.pt",
    "'.pt",
    "\\.pt",
    "e\u0301.pt",
    "\u00e9.pt",
    "\u202ea.pt",
    "ｂ.pt",
    "A.PT",
    "a.SafeTensors",
    "-1.pt",
    "0.5.pt",
    "None.pt",
    "both.pt",
    "./a.pt".replace("/", "\u2215"),
    "n" * 200 + ".pt",
    os.fsdecode(b"\xff\xfe.pt"),
    "sub/[x].pt",
    " sub /\u3000x .pt",
    "[sub]/both.hns.pt",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name)[:40])
def test_unusual_file_names(name: str, tmp_path: Path) -> None:
    try:
        odd = make(tmp_path / name, 1)
    except OSError:
        pytest.skip("the file system does not take this name")
    make(tmp_path / "x.pt", 2)  # what a careless reader would take
    other = make(tmp_path / "b.pt", 3)
    assert_kept([part(odd, 0.123456789), part(other)], tmp_path / "both.hns")


PAIRS = [
    ("a.pt", "a.safetensors"),
    ("a.pt", "A.pt"),
    ("a.pt", "a.PT"),
    ("a.pt", "a.pt.safetensors"),
    ("a.pt", "sub/a.pt"),
    ("e\u0301.pt", "\u00e9.pt"),
    ("\u00df.pt", "ss.pt"),
    ("\u212a.pt", "k.pt"),
    ("x\\y.pt", "x/y.pt"),
    ("a.pt", "a .pt"),
    ("a.pt", " a.pt"),
    ("[a].pt", "a.pt"),
    ("sub/a.pt", "sub/a.safetensors"),
    ("both.pt", "sub/both.pt"),
]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("names", PAIRS, ids=ascii)
def test_similar_file_names(names: tuple[str, str], swapped: bool, tmp_path: Path) -> None:
    one, other = (make(tmp_path / name, seed) for seed, name in enumerate(names))
    if len({one.stat().st_ino, other.stat().st_ino}) == 1:
        pytest.skip("the file system takes both names for one")
    parts = [part(one, 0.3), part(other, 0.7)]
    assert_kept(parts[::-1] if swapped else parts, tmp_path / "both.hns")


@settings(max_examples=50, suppress_health_check=SLOW, deadline=None)
@given(
    names=st.lists(st.text("ab.[]'\"\\ ,:\u00e9e\u0301", min_size=1, max_size=5), min_size=1, max_size=4, unique=True),
    strengths=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_many_unusual_names_and_strengths(
    names: list[str], strengths: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    paths = [make(folder / f"{name}.pt", seed) for seed, name in enumerate(names)]
    assert_kept([part(path, strength) for path, strength in zip(paths, strengths, strict=False)], folder / "a.hns")


@pytest.mark.parametrize("strength", [0, 1, 0.1 + 0.2, 1 / 3, 5e-324, 1e-7, 1 - 2**-53, 0.123456789012345678, -0.0])
def test_strengths_are_exact(strength: float, tmp_path: Path) -> None:
    made = make(tmp_path / "a.pt", 1)
    assert_kept([part(made, strength), part(made)], tmp_path / "both.hns")


def test_links_and_nested_compositions(tmp_path: Path) -> None:
    one, other = make(tmp_path / "a.pt", 1), make(tmp_path / "b.pt", 2)
    (tmp_path / "link.pt").symlink_to(one)
    (tmp_path / "inner.hns").write_text("{a: 3, b: 1}")
    assert_kept([part(tmp_path / "link.pt"), part(other, 0.5)], tmp_path / "both.hns")
    assert_kept([part(tmp_path / "inner.hns", 0.3), part(other, 0.5)], tmp_path / "more.hns")


def refused(parts: list[Part], target: Path, words: str) -> None:
    with pytest.raises(NotMergeableError, match=words):
        composition(parts, target)


def test_members_elsewhere_are_refused(tmp_path: Path) -> None:
    away = make(tmp_path / "away" / "a.pt", 1)
    here = make(tmp_path / "here" / "a.pt", 2)
    target = tmp_path / "here" / "both.hns"
    refused([part(away), part(here)], target, r"a\.pt")
    assert_kept([part(away)], tmp_path / "both.hns")
    odd = make(tmp_path / "here" / "a.bin", 3)
    refused([part(odd)], target, "a.bin")
    nested = tmp_path / "here" / "inner.hns"
    nested.write_text("[a, elsewhere]")
    make(tmp_path / "away" / "elsewhere.pt", 4)
    refused([part(nested, folders=(tmp_path / "away",))], target, "'elsewhere'")
    nested.write_text("[A]")
    make(tmp_path / "away" / "A.pt", 5)
    refused([part(nested, folders=(tmp_path / "away",))], target, "inner.hns")


def test_a_composition_cannot_name_itself(tmp_path: Path) -> None:
    make(tmp_path / "a.pt", 1)
    target = tmp_path / "both.hns"
    target.write_text("[a]")
    (tmp_path / "inner.hns").write_text("[both]")
    (tmp_path / "link.hns").symlink_to(target)
    (tmp_path / "through.hns").write_text("[link]")
    for name in ("both", "inner", "link", "through"):
        refused([part(tmp_path / f"{name}.hns")], target, f"{name}|both|link")
    assert target.read_text() == "[a]"


def test_limits_of_members_and_levels(tmp_path: Path) -> None:
    one = part(make(tmp_path / "a.pt", 1))
    assert_kept([one] * 100, tmp_path / "both.hns")
    refused([one] * 101, tmp_path / "more.hns", "100")
    name = "a"
    for level in range(8):
        (tmp_path / f"level{level}.hns").write_text(f"[{name}]")
        name = f"level{level}"
    assert_kept([part(tmp_path / "level6.hns")], tmp_path / "eight.hns")
    refused([part(tmp_path / "level7.hns")], tmp_path / "nine.hns", "level")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Path]:
    make(tmp_path / "[x].pt", 1)
    make(tmp_path / "x.pt", 2)
    make(tmp_path / "b.pt", 3)
    yield tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "hnloader", "merge", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(hnloader.__file__).parents[1])}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_merge_command_writes_compositions(two: Path) -> None:
    code, err = run(two, "./[x].pt", "./b.pt:0.123456789", "-o", "m.hns")
    assert code == 0, err
    x = torch.randn(3, 8)
    one, other = hnloader.load(two / "[x].pt"), hnloader.load(two / "b.pt")
    found = hnloader.load(two / "m.hns").transform("k", x)
    assert torch.equal(found, other.transform("k", one.transform("k", x), 0.123456789))
    before = (two / "m.hns").read_bytes()
    for arguments in (("-o", "m.hns"), ("-o", "m.hns", "--overwrite", "--mode", "average"), ("-o", "no/m.hns")):
        code, err = run(two, "./x.pt", "./b.pt", *arguments)
        assert code == 1, err
    code, err = run(two, "./x.pt", "./b.pt", "-o", "n.hns", "--mode", "side-by-side")
    assert code == 1
    assert "side-by-side" in err
    assert (two / "m.hns").read_bytes() == before
    assert not (two / "n.hns").exists()


@pytest.mark.slow
def test_members_are_sources_too(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        hnloader.save(Hypernetwork.new((8,), Architecture(), name=name), tmp_path / f"{name}.pt")
    (tmp_path / "inner.hns").write_text("[a, b]")
    (tmp_path / "all.hns").write_text("[inner]")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("a.pt", "inner.hns", "all.hns"):
        code, err = run(tmp_path, "./all.hns", "-o", name, "--overwrite")
        assert code == 1
        assert name in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "b.pt").chmod(0o600)
    code, err = run(tmp_path, "./all.hns", "-o", "new.pt")
    assert code == 0, err
    assert os.name == "nt" or (tmp_path / "new.pt").stat().st_mode & 0o777 == 0o600


def test_paths_in_a_library(two: Path) -> None:
    make(two / "sub" / "b.pt", 4)
    library = Library([two])
    assert library.find("./b.pt") == two / "b.pt"
    assert library.find("./sub/B.PT") == two / "sub" / "b.pt"
    assert library.find("./[x].pt") == two / "[x].pt"
    for name in ("./b", "./", "./../b.pt", "././b.pt", "./sub"):
        with pytest.raises(HypernetworkError):
            library.find(name)
