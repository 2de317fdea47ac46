"""Run each benchmark from end to end on a small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.benchmarks import __main__ as benchmarks
from lab.benchmarks import _plots, attach_time, growth, step_time
from tests.lab.benchmarks.subjects import tiny_subject


@pytest.mark.slow
def test_step_time(tmp_path: Path) -> None:
    subject = tiny_subject()
    results = [step_time.measure(subject, group, 0, least=2) for group in step_time.GROUPS]
    shown = step_time.model_table(results)
    for way in step_time.WAYS:
        assert way in shown
    assert all(result.errors["hnloader"] < 1e-3 for result in results)
    arithmetic = step_time.arithmetic_table(results)
    assert all(result.group.case.title in arithmetic for result in results)
    targets = step_time.targets(results)
    assert len(targets) == len(step_time.GROUPS)
    line = step_time.summary(results)
    assert line.startswith("A step with a [1, 2, 1] hypernetwork takes ")
    assert all(kind in line for kind in ("linear", "relu", "cross-attention only"))
    _plots.step_time([result.to_json() for result in results], tmp_path / "steps")
    assert "<svg" in (tmp_path / "steps.svg").read_text()
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_growth(tmp_path: Path) -> None:
    axes = {"hidden width": (0.25, 2.0)}
    cells = list(growth.cells(axes, 0, lambda size, batch: tiny_subject()))
    assert [cell.plans["linear, not folded"] for cell in cells] == [
        "self live, cross cache",
        "self collapse, cross cache",
    ]
    assert all(cell.memory["hnloader, linear"] > 0 for cell in cells)
    assert "hidden width 0.25" in growth.growth_table(cells)
    assert len(growth.targets(cells)) == len(growth.KINDS)
    _plots.growth([cell.to_json() for cell in cells], tmp_path / "growth")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


@pytest.mark.slow
def test_attach_time(tmp_path: Path) -> None:
    subject = tiny_subject()
    costs = [attach_time.measure(subject, kind, tmp_path, 2) for kind in attach_time.KINDS]
    linear, relu = costs
    assert linear.folded_bytes > 0
    assert relu.folded_bytes == 0
    assert linear.kept >= linear.folded_bytes
    assert [cost.kept + cost.detached.kept for cost in costs] == [0, 0]
    assert "torch.load" in attach_time.time_table(costs, 1.0)
    assert "folded" in attach_time.memory_table(costs)
    assert {target.what for target in attach_time.targets(costs, subject)} == {
        "attach and detach",
        "set_strength",
        "memory kept, relative to the folded projections",
    }


def test_every_benchmark_is_listed() -> None:
    folder = Path(benchmarks.__file__).parent
    assert {f"{name}.py" for name in benchmarks.names()} == {path.name for path in folder.glob("[a-z]*.py")}
