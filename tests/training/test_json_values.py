"""Values of JSON files are checked against dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from hnloader.training.json_values import problem_of


@dataclass
class Example:
    kind: Literal["a", "b"]
    count: int
    number: float | None
    pair: tuple[float, int] | None
    entries: list[dict[str, float]]


VALID = {"kind": "a", "count": 3, "number": 0.5, "pair": [0.5, 2], "entries": [{"step": 1}]}


def test_valid_values() -> None:
    assert problem_of(Example, VALID) == ""
    assert problem_of(Example, {**VALID, "number": None, "pair": None, "entries": [], "more": 1}) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("kind", value) for value in ("c", None, ["a"])),
        *(("count", value) for value in (-1, True, 1.0, 10**400)),
        *(("number", value) for value in ("x", True, 10**400)),
        *(("pair", value) for value in ([1], [1, 2, 3], [1, -2], "ab")),
        *(("entries", value) for value in ({}, [1], [{"step": "x"}])),
    ],
)
def test_the_first_wrong_value_is_named(name: str, value: object) -> None:
    assert f"'{name}'" in problem_of(Example, {**VALID, name: value})


@pytest.mark.parametrize("values", [None, 3, "kind", [], True])
def test_other_values_than_a_mapping(values: Any) -> None:
    assert type(values).__name__ in problem_of(Example, values)


def test_a_missing_value_is_named() -> None:
    assert "'count'" in problem_of(Example, {"kind": "a"})
