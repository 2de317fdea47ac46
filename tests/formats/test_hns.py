"""`.hns` files combine hypernetworks as their text states; the text is never evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hnloader
from hnloader import CorruptFileError, HypernetworkError, HypernetworkNotFoundError, UnknownFormatError
from hnloader.formats import hns
from tests.support.builders import Recipe, make_sides, metadata, relative_error, simple_tree, tree, write
from tests.support.errors import raises

Step = Callable[[Tensor], Tensor]
NAMES = ("A", "B", "ink style", "über", "C(1)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("members")
    for seed, name in enumerate(NAMES):
        recipe = Recipe(activation="relu")
        write(path / f"{name}.pt", tree(make_sides(recipe, (8,), seed=seed), metadata(recipe, "2022-11")))
    return path


def member(name: str, strength: float = 1.0, index: int = 0) -> Step:
    """The k side of the member called `name`, from its own module."""
    side = make_sides(Recipe(activation="relu"), (8,), seed=NAMES.index(name))[8][index]
    return lambda x: side(x, strength)


def mean(*parts: tuple[Step, float]) -> Step:
    total = sum(weight for _, weight in parts)
    return lambda x: sum((step(x) * (weight / total) for step, weight in parts), torch.zeros(()))


def chain(*steps: Step) -> Step:
    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


A, B, INK = member("A"), member("B"), member("ink style")
MEANINGS: dict[str, Step] = {
    "A": A,
    "'A'": A,
    "ink style": INK,
    "['A', 'B']": chain(A, B),
    "['B', 'A', 'B']": chain(B, A, B),
    "[A, B]": chain(A, B),
    "[ink style, über]": chain(INK, member("über")),
    "['C(1)', \"ink style\"]": chain(member("C(1)"), INK),
    "[('A', 0.2), ('B', 0.4)]": chain(member("A", 0.2), member("B", 0.4)),
    "('A', 0.25)": member("A", 0.25),
    "[('A', 0), 'B']": B,
    "[{'A': 0.6}, 'B']": chain(member("A", 0.6), B),
    "{'A': 0.6}": member("A", 0.6),
    "{'A': 1}": A,
    "{'A'}": A,
    "[[['A']]]": A,
    "[['A'], {'B'}, 'A']": chain(A, B, A),
    "{'A', 'B'}": mean((A, 1), (B, 1)),
    "{'A', 'B', 'A'}": mean((A, 1), (B, 1)),
    "{'A', 'A'}": A,
    "{('A', 0.5), 'B'}": mean((member("A", 0.5), 1), (B, 1)),
    "{'A': 0.8, 'B': 0.1}": mean((A, 0.8), (B, 0.1)),
    "{'A': 8, 'B': 1, 'ink style': 3}": mean((A, 8), (B, 1), (INK, 3)),
    "{'A': 2, 'B': -1}": mean((A, 2), (B, -1)),
    "{'A': 1, 'A': 3, 'B': 1}": mean((A, 3), (B, 1)),
    "[{'A': 0.5, 'B': 0.5}, 'ink style']": chain(mean((A, 1), (B, 1)), INK),
    "{\"{'A': 0.2, 'B': 0.8}\": 0.8, 'ink style': 0.1}": mean((mean((A, 0.2), (B, 0.8)), 0.8), (INK, 0.1)),
    "{\"['A', ('B', 0.3)]\", 'ink style'}": mean((chain(A, member("B", 0.3)), 1), (INK, 1)),
    "{'{\"A\", \"{\\'A\\': 3, \\'B\\': 1}\"}': 1, 'B': 1}": mean((mean((A, 1), (mean((A, 3), (B, 1)), 1)), 1), (B, 1)),
    "\n [ 'A' ,\n\t('B', 0.5) , ]\n": chain(A, member("B", 0.5)),
    "\ufeff['A']": A,
    "['\\x41', '\\u00fcber']": chain(A, member("über")),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_structures_compute_their_meaning(text: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.hns"
    path.write_text(text, encoding="utf-8")
    hypernetwork = hnloader.load(path, folders=[folder])
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = MEANINGS[text](x)
        assert relative_error(hypernetwork(x)[0], expected) < 1e-6
        # Other strengths move from the context towards what the structure gives.
        assert relative_error(hypernetwork(x, 0.4)[0], x + 0.4 * (expected - x)) < 1e-5
    assert hypernetwork.architecture is None
    assert hypernetwork.widths == (8,)


ERRORS = {
    "": "empty",
    "   \n": "a name or a bracket",
    "[]": "at least one name",
    "['A'": "']'",
    "['A']]": "Line 1, column 6",
    "['A' 'B']": "']'",
    "['A', 3": "']'",
    "{'A': 1, 'B'}": "'name: weight'",
    "{'A': 'x', 'B': 1}": "a number instead of 'x'",
    "{'A': nan, 'B': 1}": "a number instead of 'nan'",
    "{'A': 1e999, 'B': 1}": "a number instead of '1e999'",
    "{'A': 1, 'B': -1}": "add up to 0",
    "('A', 1.5)": "a strength from 0 to 1",
    "('A', -0.1)": "a strength from 0 to 1",
    "('A', 'B', 'C')": "(name, strength)",
    "['A', '']": "Line 1, column 10",
    "['\\x4']": "proper escapes",
    "['A\x00']": "",
    "__import__('os').system('true')": "Line 1, column 11",
    "[lambda: 1]": "found ': 1]'",
    "[" * 100 + "'A'" + "]" * 100: "nested",
    "[" + ",".join(["'A'"] * 200) + "]": "at most 100 members",
}


@pytest.mark.parametrize("text", ERRORS, ids=lambda text: text[:30])
def test_wrong_texts_are_refused(text: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.hns"
    path.write_text(text, encoding="utf-8")
    for read in (hnloader.load, hnloader.inspect):
        with pytest.raises(HypernetworkError) as caught:
            read(path, folders=[folder])
        assert ERRORS[text] in str(caught.value)
        assert str(path) in str(caught.value)


def test_missing_members_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.hns"
    path.write_text("['A', 'ink styel']")
    with raises(HypernetworkNotFoundError, path, "'ink styel'", "'ink style'"):
        hnloader.load(path, folders=[folder])
    path.write_text("['../A']")
    with raises(HypernetworkNotFoundError, "../A"):
        hnloader.load(path, folders=[folder])


def test_members_beside_the_file_come_first(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "A.pt", simple_tree(width=12))
    (tmp_path / "mixed.hns").write_text("A")
    assert hnloader.load(tmp_path / "mixed.hns", folders=[folder]).widths == (12,)


def test_member_without_the_width_changes_nothing(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "wide.pt", simple_tree(width=12))
    (tmp_path / "mixed.hns").write_text("[A, wide]")
    hypernetwork = hnloader.load(tmp_path / "mixed.hns", folders=[folder])
    assert hypernetwork.widths == (8, 12)
    x = torch.randn(1, 2, 8)
    assert relative_error(hypernetwork(x)[0], A(x)) < 1e-6


def test_nested_compositions_load_and_circles_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "inner.hns").write_text("[A, B]")
    (tmp_path / "outer.hns").write_text("[inner, A]")
    x = torch.randn(1, 2, 8)
    found = hnloader.load(tmp_path / "outer.hns", folders=[folder, tmp_path])(x)[0]
    assert relative_error(found, chain(A, B, A)(x)) < 1e-6
    (tmp_path / "inner.hns").write_text("[outer]")
    for read in (hnloader.load, hnloader.inspect):
        with raises(CorruptFileError, "outer.hns"):
            read(tmp_path / "outer.hns", folders=[folder, tmp_path])


def test_files_other_than_text_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.hns").write_bytes(b"\xff\xfe\x00binary")
    (tmp_path / "b.hns").write_bytes(b"[" + b"A," * 100_000 + b"]")
    for name, fact in (("a.hns", "text"), ("b.hns", "65,536")):
        with raises(UnknownFormatError, name, fact):
            hnloader.load(tmp_path / name, folders=[folder])


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="[](){}:,'\"\\AB0.5 \n#", max_size=40) | st.text(max_size=30))
def test_random_text_is_parsed_or_refused_with_its_place(text: str) -> None:
    try:
        structure = hns.parse(text)
    except hns._SyntaxError as error:
        assert str(error)
    else:
        assert structure.names()


def test_braces_have_a_limit_of_entries() -> None:
    with raises(hns._SyntaxError, 100, "',b,c"):
        hns.parse("{" + ",".join(f"a{n}" for n in range(101)) + ",b,c}")
