"""Run each benchmark from end to end on a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo

from lab.benchmarks import __main__ as benchmarks
from lab.benchmarks import _models, _plots, _steps, attach_time, growth, memory_kept, step_time
from lab.benchmarks._models import Subject
from lab.benchmarks._steps import Effort
from tests.lab.benchmarks.subjects import tiny_subject
from tests.support.paths import ROOT
from tests.support.small_models import make_small_unet, unet_inputs


def test_quick_step_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    quick = step_time.quick_plans()["launch-bound"]
    plan = replace(quick, make=tiny_subject, effort=Effort(0, least=1), calls=1)
    monkeypatch.setattr(step_time, "quick_plans", lambda: {"launch-bound": plan})
    monkeypatch.setattr("sys.argv", ["step_time", "--quick", "--threads", "1", "--results", str(tmp_path)])
    step_time.main()
    saved = json.loads((tmp_path / "step_time.json").read_text())
    limits = sorted(target["limit"] for target in saved["targets"])
    assert limits == [0.6, 0.7, 0.99, 0.99, 1, 1, 1, 1, 1, 50, 50]
    for result in saved["results"]:
        assert result["ways"]["hnloader"]["difference"] < 1e-3
    shown = capsys.readouterr().out
    assert all(target["what"] in shown for target in saved["targets"])
    assert saved["summary"] in shown
    assert all(kind in saved["summary"] for kind in ("linear", "relu", "cross-attention only"))
    assert "<svg" in (tmp_path / "speed-steps.svg").read_text()
    assert (tmp_path / "speed-steps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_way_and_target_of_step_time() -> None:
    results = _steps.measure(tiny_subject(), step_time.COMPARED, Effort(0, sets=2, least=1, most=1))
    shown = _steps.model_table(results)
    for group in step_time.COMPARED:
        assert group.case.title in shown
        assert all(way in shown for way in group.ways)
    targets = step_time.arithmetic_bound_targets(results, half=True)
    assert len(targets) == len(step_time.COMPARED) + 1  # and exact=True
    assert "multiply-adds" in _steps.arithmetic_table(results)


@pytest.mark.slow
def test_new_strengths_of_a_compiled_model_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    subject = Subject("small", make_small_unet(), unet_inputs("sd1"), compiled=True)
    torch._dynamo.reset()
    assert all(target.measured.median >= 0 for target in step_time.compilation_targets(subject))
    torch._dynamo.reset()


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
    assert linear.bound > relu.bound > 0
    assert [cost.kept + cost.detached.kept for cost in costs] == [0, 0]
    assert "torch.load" in attach_time.time_table(costs, 1.0)
    assert "folds" in attach_time.memory_table(costs)
    assert {target.what for target in attach_time.targets(costs, subject)} == {
        "attach and detach",
        "set_strength",
        "memory kept, relative to folds and one text",
    }


def test_memory_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(_models, "launch_bound", tiny_subject)
    monkeypatch.setattr("sys.argv", ["memory_kept", "--quick", "--results", str(tmp_path)])
    memory_kept.main()
    saved = json.loads((tmp_path / "memory_kept.json").read_text())
    assert [each["after"] for each in saved["kept"]] == [0, 0]
    folds, texts = saved["kept"]
    assert 0 < folds["one"] == folds["many"]
    assert 0 < texts["one"] < texts["many"] <= 1.01 * texts["bound"]
    assert "self-attention: folded projections" in capsys.readouterr().out


def test_every_benchmark_is_listed() -> None:
    folder = Path(benchmarks.__file__).parent
    assert {f"{name}.py" for name in benchmarks.names()} == {path.name for path in folder.glob("[a-z]*.py")}


@pytest.mark.parametrize("family", ["a1111", "forge"])
def test_step_in_the_layout_of_a_webui(family: str) -> None:
    # In its own process, because the stand-in stays until the process ends.
    program = (
        "from lab.benchmarks import _webui_models\n"
        f"subject = _webui_models.{family}()\n"
        "print(tuple(subject.step(subject.model)().shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 4, 8, 8)\n"
