"""One file has one reading: files that other programs read differently are refused and suspicious."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path

import pytest
import torch

import hnloader
from hnloader import HypernetworkError, UnsafeFileError
from hnloader.scanning import scan
from tests.support.builders import simple_tree
from tests.support.hostile import called, in_zip, named, rezipped, saved, text, with_member
from tests.support.two_readings import files

NAMES = [name for name, _ in files(Path("x"))]
# What neither torch.load nor pickle.load runs, but torch.package, a check of one member or an older program.
FOR_OTHERS = {
    "a zip archive in a comment",
    "a zip archive behind a legacy stream",
    "a zip archive behind a zip archive",
    "a zip archive behind a safetensors file",
    "a zip archive behind text",
    "a second pickle in another folder",
    "a second pickle without a folder",
    "a pickle in a storage of torch.package",
    "a pickle in a member of any name",
    "a pickle as a storage",
    "a pickle of protocol 0 as a storage",
    "a call behind 16 MiB in a member",
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "sang"


@pytest.mark.parametrize("name", NAMES)
def test_scan_finds_the_second_reading(name: str, tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "style.pt"
    path.write_bytes(dict(files(canary))[name])
    found = scan(path)
    assert found.verdict == "suspicious" and found.findings
    assert not canary.exists()


@pytest.mark.parametrize("name", NAMES)
def test_loaded_files_have_one_reading(name: str, canary: Path) -> None:
    data = dict(files(canary))[name]
    beside_a_sound_file = "storage" in name or "member" in name
    for read in (hnloader.load, hnloader.inspect):
        if beside_a_sound_file:  # a sound hypernetwork does not refer to it; scan reports it
            assert read(io.BytesIO(data))
        else:
            with pytest.raises(HypernetworkError):
                read(io.BytesIO(data))
    assert not canary.exists()


@pytest.mark.parametrize("name", sorted(set(NAMES) - FOR_OTHERS))
def test_second_reading_is_real(name: str, tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "style.pt"
    path.write_bytes(dict(files(canary))[name])
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        for read in (
            lambda: torch.load(path, weights_only=False),
            lambda: pickle.load(file),
            lambda: pickle.load(io.BytesIO(path.read_bytes())),
        ):
            try:
                read()
            except Exception:  # after the call, most of them
                continue
    assert canary.exists()


# -- pickles that are not read


LINES = b"(Vx\ntR"
UNREAD = {
    "a name of Python 2, then damage": b"c__builtin__\nopen\n" + LINES + b"\xff",
    "a module of another package, then damage": b"cpip._internal\nmain\n" + LINES + b"\xff",
    "a module of no package, then damage": b"cmine\nrun\n" + LINES + b"\xff",
    "a tuple as a key": b"(" + b"cmine\nrun\n" + LINES + b"0(I1\nI2\ntI3\nd.",
    "a hexadecimal number": b"cmine\nrun\n" + LINES + b"0I0x10\n.",
    "an octal number": b"cmine\nrun\n" + LINES + b"0I010\n.",
    "an integer of 200 digits": b"cmine\nrun\n" + LINES + b"0I" + b"1" * 200 + b"\n.",
    "a long integer of 300 bytes": b"cmine\nrun\n" + LINES + b"0\x8b\x2c\x01\0\0" + b"\x01" * 300 + b".",
    "the second pickle in a row": b"\x80\x02N." + b"cmine\nrun\n" + LINES + b"0N.",
    "the 65th pickle in a row": b"\x80\x02N." * 64 + b"\x80\x02cmine\nrun\n" + LINES + b"0N.",
    "after 500,000 opcodes": b"N0" * 250_001 + b"cmine\nrun\n" + LINES + b"0N.",
    "after 16 MiB": b"V" + b"a" * (16 << 20) + b"\n0cmine\nrun\n" + LINES + b"0N.",
    "after 100 levels": b"(" * 100 + b"t" * 100 + b"0cmine\nrun\n" + LINES + b"0N.",
    "a late magic number": b"0" + b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "a magic number, then a call": b"L0x1950a86a20f9469cfc6cL\n." + b"cmine\nrun\n" + LINES + b"0N.",
    "INST": b"(Vx\nicode\ninteract\n.",
    "OBJ": b"(cmine\nrun\nVx\no.",
    "STACK_GLOBAL": b"Vmine\nVrun\n\x93(tR.",
    "a name that is not an identifier": b"cmy module\nrun it\n(tR\xff",
    "an import alone of a package's module": b"cpip.__main__\nx\n",
    "an import alone of Python's": b"cantigravity\nfly\n",
    "an import alone without its last newline": b"cidlelib.idle\nmain",
    "a name without end": b"cos\nsystem" + b"x" * 2000 + b"\n(tR.",
    "an extension": b"\x80\x02\x82\x01.",
    "a call of what a call gave": b"ccollections\nOrderedDict\n)R)R.",
    "attributes set on a class": b"ccollections\nOrderedDict\n}Vx\nI1\nsb.",
}


@pytest.mark.parametrize("name", [name for name in UNREAD if name != "a late magic number"])
def test_call_counts_in_unreadable_pickles(name: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(UNREAD[name])
    assert scan(path).verdict == "suspicious"
    for reader in (hnloader.load, hnloader.inspect):
        with pytest.raises(HypernetworkError):
            reader(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"N0" * 400_000,
        b"\x80\x02" + b"N0" * 400_000 + b"N.",
        b"\x80\x02N." * 100_000,
        b"\x80\x02\xff",
        b"\x80\x04K",
        b"ccollections\nOrderedDict\n)\xff",
    ],
    ids=["opcodes without end", "opcodes", "pickles", "damage", "cut off", "damage behind a known name"],
)
def test_limit_or_damage_is_unreadable(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    assert scan(path).verdict == "unreadable"


@pytest.mark.parametrize(
    ("name", "content", "method"),
    [
        ("archive/x", b"\x80\x02" + b"N0" * 400_000, 0),
        ("archive/data/99", b"\x80\x02" + b"".join(b"J%s0" % n.to_bytes(4, "little") for n in range(400_000)), 8),
    ],
)
def test_limit_in_any_member_is_unreadable(name: str, content: bytes, method: int, tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    path.write_bytes(with_member(rezipped(saved(simple_tree())), name, content, method))
    assert scan(path).verdict == "unreadable"


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\ncoat\n",
        "config: x\ny: z\n",
        "(a)\n",
        "I am\nclass\n",
        "Place\nnames\n",
        "S'a'\n",
        "café\nthé\n",
        "R",
        "",
    ],
)
def test_plain_texts_are_not_pickles(content: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(content + "the rest\n", encoding="utf-8")
    assert scan(path).verdict == "not a hypernetwork"


def test_damaged_argument_does_not_hide_a_call(tmp_path: Path) -> None:
    code = called(named("os:system"), text("true"))
    data = in_zip(rezipped(saved(simple_tree())), code + b"0\x8a\xff" + b"\x01" * 255)
    with pytest.raises(UnsafeFileError):
        hnloader.load(io.BytesIO(data))
