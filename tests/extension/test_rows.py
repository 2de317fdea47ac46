"""Rows of the panel and of the API, and the tags that they stand for."""

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
def test_a_row_and_its_tag_are_the_same(tags: list[Tag]) -> None:
    values = [values_of(tag) for tag in tags]
    for given_rows in (values, json.dumps(values), text_of(tags)):
        assert tags_of(read_rows(given_rows)) == tags


@given(JSON)
@settings(deadline=None)
def test_anything_is_read_without_an_error(value: Any) -> None:
    for given_value in (value, json.dumps(value)):
        for row in read_rows(given_value):
            assert row.tag is None or not row.problem


def test_rows_that_are_off_or_empty_do_nothing_and_are_no_problem() -> None:
    rows = [{"name": "a", "enabled": False, "start": 0.9, "end": 0.1}, {"name": ""}, {"name": "b"}]
    assert tags_of(read_rows(rows)) == [Tag("b")]
    assert problems(rows) == []
    for nothing in (None, "", "  ", [], "[]"):
        assert read_rows(nothing) == []


def test_numbers_may_be_texts_and_values_may_be_left_out() -> None:
    rows = [{"name": "a", "strength": "0.5", "block": "mid+up@0.5", "start": None}]
    assert tags_of(read_rows(rows)) == [Tag("a", 0.5, (BlockWeight("mid"), BlockWeight("up", 0.5)))]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"strength": "much"}, "strength is 'much'"),
        ({"strength": True}, "strength is True"),
        ({"strength": 10**400}, "strength is 1"),
        ({"strength": float("nan")}, "not a finite number"),
        ({"start": 0.9, "end": 0.1}, "start=0.9 and end=0.1"),
        ({"block": "up@x"}, "the factor of block up"),
        ({"block": "up,start=0.5"}, "cannot be a block"),
        ({"block": 3}, "name and block are texts"),
        ({"enabled": "yes"}, "enabled is 'yes'"),
        ({"blocks": "up"}, "no 'blocks'"),
        ({"name": 3}, "a name is needed"),
        ({"name": "a>b"}, "Rename the file"),
    ],
)
def test_a_wrong_value_is_said_with_its_row_and_leaves_the_others(wrong: dict[str, Any], said: str) -> None:
    rows = [{"name": "a"}, {"name": "b", **wrong}, {"name": "c"}]
    assert tags_of(read_rows(rows)) == [Tag("a"), Tag("c")]
    (problem,) = problems(rows)
    assert said in problem
    assert problem.startswith("Row 2: ")


@pytest.mark.parametrize(
    ("given_value", "said"),
    [
        ({"name": "a"}, "one object"),
        ('{"name": "a"}', "one object"),
        (3, "int"),
        (["<hypernet:a>"], "Row 1 is str"),
        ("[1", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("ink", "'ink' is not a tag"),
        ("<lora:a:1>", "'<lora:a:1>' is not a tag"),
        ([{"name": "a"}] * 101, "101 rows"),
    ],
)
def test_what_is_no_rows_is_said(given_value: Any, said: str) -> None:
    assert tags_of(read_rows(given_value)) == []
    (problem,) = problems(given_value)
    assert said in problem


def test_a_wrong_tag_leaves_the_others() -> None:
    text = "<hypernet:a:0.5>, <hypernet:b:x> <hypernet:c:1:end=0.5>"
    assert text_of(tags_of(read_rows(text))) == "<hypernet:a:0.5><hypernet:c:1:end=0.5>"
    assert len(problems(text)) == 1
