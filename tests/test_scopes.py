"""Scopes are sets of sites with one text each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnloader.scopes import KINDS, MOST_SITES, Scope, as_scope, check_apart, refined
from tests.support.errors import raises

NUMBERS = st.sets(st.one_of(st.integers(0, 12), st.integers(0, MOST_SITES - 1)), min_size=1, max_size=30)
RANGES = st.builds(range, st.integers(0, 40), st.integers(41, 90), st.integers(1, 9)).map(set)
KIND = st.sampled_from([None, *KINDS])


@st.composite
def scopes(draw: st.DrawFn) -> Scope:
    sites = Scope.of(8, draw(st.one_of(NUMBERS, RANGES))).sites
    if draw(st.booleans()):
        sites |= -1 << draw(st.integers(0, MOST_SITES - 1))
    return Scope(draw(st.sampled_from([8, 768])), draw(KIND), sites)


@given(scopes())
def test_a_scope_is_read_from_its_text(scope: Scope) -> None:
    assert Scope.parse(str(scope)) == scope == as_scope(str(scope))


@given(
    st.from_regex(
        r"[1-9][0-9]{0,2}(:(self|cross))?(:[0-9]{1,2}(-([0-9]{1,2}(/[0-9])?)?)?(,[0-9]{1,3})?)?", fullmatch=True
    )
)
def test_every_scope_has_one_text(text: str) -> None:
    try:
        found = Scope.parse(text)
    except ValueError:
        return
    assert str(found) == text


@given(NUMBERS, KIND)
def test_a_scope_holds_its_numbers(numbers: set[int], kind: str | None) -> None:
    scope = Scope.of(8, numbers, kind)  # type: ignore[arg-type]
    assert set(scope.numbers) == numbers
    for number in range(MOST_SITES + 2):
        for each in KINDS:
            assert scope.holds(8, each, number) == (number in numbers and kind in (None, each))
        assert not scope.holds(9, "self", number)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("8:0-7", range(8)),
        ("8:0-30/2", range(0, 31, 2)),
        ("8:3,5,9", (3, 5, 9)),
        ("8:0,1", (0, 1)),
        ("8:0-2,7-13/3,20", (0, 1, 2, 7, 10, 13, 20)),
    ],
)
def test_texts_read_naturally(text: str, numbers: range) -> None:
    assert str(Scope.of(8, numbers)) == text


def test_a_scope_may_hold_all_sites_from_one_on() -> None:
    scope = Scope.parse("8:self:0,3,12-")
    held = [number for number in range(5000) if scope.holds(8, "self", number)]
    assert held == [0, 3, *range(12, 5000)]
    assert scope.numbers == (0, 3, 12)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "08", "-8", "8:", "8::0", "8:both", "8:0:self", "8:self:", "8:self:self", "8 ", "8.0", "8:1 ", "８"),
        *(
            "8:,",
            "8:0,",
            "8:7-0",
            "8:0-8/0",
            "8:0-8/3",
            "8:0-7/1",
            "8:0,1,2",
            "8:1,0",
            "8:0,0",
            "8:0-",
            "8:00",
            "8:0-1",
        ),
        *("8:1000", "8:0-1000", "8:5-/2", "8:0/2", "8:5-,7", "8:0-4,3-9", "8:0-2-4", "99999999"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Scope|Sites"):
        Scope.parse(text)


@pytest.mark.parametrize("numbers", [(), (-1,), (MOST_SITES,)])
def test_numbers_out_of_range_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ite"):
        Scope.of(8, numbers)


@pytest.mark.parametrize(
    ("one", "two"), [("8", "8:3"), ("8:self", "8:self:3-"), ("8:self:3", "8:3"), ("8:0-8/2", "8:0-9/3"), ("8", "8")]
)
def test_scopes_with_a_common_site_are_refused(one: str, two: str) -> None:
    with raises(ValueError, two):
        check_apart([Scope.parse(one), Scope.parse(two)])


def test_too_many_scopes_and_long_texts_are_refused() -> None:
    with raises(ValueError, "1,024", "1,100"):
        check_apart([Scope(width) for width in range(1, 1101)])
    with pytest.raises(ValueError, match="Scope"):
        Scope.parse("8:" + "0-999," * 100_000 + "0")


def test_scopes_apart_are_allowed() -> None:
    check_apart(
        list(map(Scope.parse, ("8:self", "8:cross", "9", "7:0,1", "7:2-", "6:self:0-4/2", "6:1,3", "6:cross:4")))
    )


def _parted(pieces: list[Scope]) -> list[Scope]:
    """Return the scopes that have no site in common with an earlier one."""
    found: list[Scope] = []
    for piece in pieces:
        try:
            check_apart([*found, piece])
        except ValueError:
            continue
        found.append(piece)
    return found


@given(st.lists(st.lists(scopes(), min_size=1, max_size=4).map(_parted), min_size=1, max_size=4))
def test_refined_scopes_hold_each_site_once_and_know_its_scopes(groups: list[list[Scope]]) -> None:
    found = refined(groups)
    check_apart(found)
    named = {number for group in groups for scope in group for number in scope.numbers}
    for width in (8, 768):
        for kind in KINDS:
            for number in {near for each in named for near in (each - 1, each, each + 1)} & set(range(MOST_SITES)):
                expected = tuple(
                    next((scope for scope in group if scope.holds(width, kind, number)), None) for group in groups
                )
                held = [within for scope, within in found.items() if scope.holds(width, kind, number)]
                assert held == ([expected] if any(expected) else [])


def test_refined_widths_stay_widths_in_their_order() -> None:
    one, two = [Scope(768), Scope(320)], [Scope(640), Scope(768)]
    assert list(refined([one, two])) == [Scope(768), Scope(320), Scope(640)]
    assert refined([one, two])[Scope(768)] == (Scope(768), Scope(768))
    assert refined([one, two])[Scope(640)] == (None, Scope(640))


def test_files_with_too_many_scopes_together_are_refused() -> None:
    odd = [Scope.of(8, [number]) for number in range(0, 400, 2)]
    even = [Scope.of(8, [number]) for number in range(1, 400, 2)]
    with raises(ValueError, "256"):
        refined([odd, even])
