"""Rows of the panel and the API as tags."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extension.rows import FIELDS, read_rows, tags_of, text_of, values_of
from hnloader.prompt import BlockWeight, Tag

NAMES = st.text(st.characters(blacklist_characters=">", blacklist_categories=["Cs", "Cc"]), min_size=1).map(str.strip)
NUMBERS = st.floats(-10, 10)
TAGS = st.builds(
    Tag,
    NAMES.filter(bool),
    NUMBERS,
    blocks=st.lists(
        st.builds(BlockWeight, st.sampled_from(["up", "mid", "up.1"]), NUMBERS), unique_by=lambda b: b.block
    ).map(tuple),
    start=st.floats(0, 0.5),
    end=st.floats(0.6, 1),
    k=NUMBERS,
    v=NUMBERS,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner),
)


def problems(given: Any) -> list[str]:
    return [row.problem for row in read_rows(given) if row.problem]


@given(st.lists(TAGS, max_size=4))
@settings(deadline=None)
def test_rows_and_tags_round_trip(tags: list[Tag]) -> None:
    values = [values_of(tag) for tag in tags]
    for given_rows in (values, json.dumps(values), text_of(tags)):
        assert tags_of(read_rows(given_rows)) == tags


@given(JSON)
@settings(deadline=None)
def test_any_value_is_accepted(value: Any) -> None:
    for given_value in (value, json.dumps(value)):
        for row in read_rows(given_value):
            assert row.tag is None or not row.problem


def test_disabled_and_empty_rows_do_nothing() -> None:
    rows = [{"name": "a", "enabled": False, "start": 0.9, "end": 0.1}, {"name": ""}, {"name": "b"}]
    assert tags_of(read_rows(rows)) == [Tag("b")]
    assert problems(rows) == []
    for nothing in (None, "", "  ", [], "[]"):
        assert read_rows(nothing) == []


def test_numbers_as_text_and_missing_values() -> None:
    rows = [{"name": "a", "strength": "0.5", "block": "mid+up@0.5", "start": None}]
    assert tags_of(read_rows(rows)) == [Tag("a", 0.5, (BlockWeight("mid"), BlockWeight("up", 0.5)))]


@pytest.mark.parametrize(
    ("wrong", "fact"),
    [
        ({"strength": "much"}, "'much'"),
        ({"strength": True}, "`strength` is True"),
        ({"strength": 10**400}, "`strength` is 1"),
        ({"strength": float("nan")}, "strength"),
        ({"start": 0.9, "end": 0.1}, "start=0.9"),
        ({"block": "up@x"}, "block up"),
        ({"block": "up,start=0.5"}, "start=0.5"),
        ({"block": 3}, "`block`"),
        ({"enabled": "yes"}, "'yes'"),
        ({"blocks": "up"}, "'blocks'"),
        ({"name": 3}, "`name`"),
        ({"name": "a>b"}, "'a>b'"),
    ],
)
def test_wrong_value_is_reported_with_its_row(wrong: dict[str, Any], fact: str) -> None:
    rows = [{"name": "a"}, {"name": "b", **wrong}, {"name": "c"}]
    assert tags_of(read_rows(rows)) == [Tag("a"), Tag("c")]
    (problem,) = problems(rows)
    assert fact in problem
    assert problem.startswith("Row 2: ")


@pytest.mark.parametrize(
    ("given_value", "fact"),
    [
        ({"name": "a"}, "one object"),
        ('{"name": "a"}', "one object"),
        (3, "int"),
        (["<hypernet:a>"], "Row 1"),
        ("[1", "JSON"),
        ("[" * 100_000, "JSON"),
        ("ink", "'ink'"),
        ("<lora:a:1>", "'<lora:a:1>'"),
        ([{"name": "a"}] * 101, "101 rows"),
    ],
)
def test_unreadable_rows_are_reported(given_value: Any, fact: str) -> None:
    assert tags_of(read_rows(given_value)) == []
    (problem,) = problems(given_value)
    assert fact in problem


def test_wrong_tag_leaves_the_others() -> None:
    text = "<hypernet:a:0.5>, <hypernet:b:x> <hypernet:c:1:end=0.5>"
    assert text_of(tags_of(read_rows(text))) == "<hypernet:a:0.5><hypernet:c:1:end=0.5>"
    assert len(problems(text)) == 1
