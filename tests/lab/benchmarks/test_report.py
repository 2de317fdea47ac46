from __future__ import annotations

import pytest

from lab.benchmarks._measure import Spread
from lab.benchmarks._report import Target, put_between, table, target_table
from tests.support.paths import ROOT


def test_table_columns_line_up() -> None:
    lines = table(["name", "time"], [["a", "10 ms"], ["long name", "1 s"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| --------- | ----: |"
    assert lines[3] == "| long name |   1 s |"


@pytest.mark.parametrize(
    ("low", "median", "bound", "verdict"),
    [
        (0.8, 0.85, None, "ok"),
        (0.9, 0.95, None, "missed by 0.1"),
        (0.8, 0.95, None, "missed by 0.1, within the spread"),
        (0.9, 0.95, 0.9, "missed by 0.1, which the arithmetic does not allow"),
    ],
)
def test_verdict_of_a_target(low: float, median: float, bound: float | None, verdict: str) -> None:
    target = Target("relu", "tiny", Spread(median, low, 1.0), 0.85, bound)
    assert target.met == (verdict == "ok")
    assert target.verdict == verdict
    assert verdict in target_table([target])


def test_neighboring_targets_share_the_name_of_their_model() -> None:
    spread = Spread(1, 1, 1)
    targets = [Target(what, where, spread, 1) for what, where in (("a", "one"), ("b", "one"), ("a", "two"))]
    names = [line.split("|")[1].strip() for line in target_table(targets).splitlines()[2:]]
    assert names == ["one", "", "two"]


def test_put_between_replaces_the_old_content() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n"
    assert put_between(text, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- end of x -->\nb\n"
    assert put_between(put_between(text, "x", "1"), "x", "2") == put_between(text, "x", "2")
    with pytest.raises(ValueError):
        put_between(text, "y", "new")


@pytest.mark.parametrize(("page", "name"), [("docs/dev/speed.md", "measured"), ("README.md", "speed")])
def test_documentation_has_the_markers(page: str, name: str) -> None:
    text = (ROOT / page).read_text()
    assert "only this" in put_between(text, name, "only this")
