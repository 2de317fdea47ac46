"""All methods train through the trainer with about the same number of values, and the table has their means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hnloader.training.text_task import TextTask
from lab.demo.stories import methods
from lab.demo.stories.methods import COLUMNS, Run, prepare_method, run_all, run_method, validation_tokens
from lab.demo.stories.styles import bundled_model
from lab.text.trained_methods import RATES, SEEDS, divergence, mean_loss, table


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "SETTINGS", {**methods.SETTINGS, "steps": 2})


def test_methods_have_about_as_many_values(tmp_path: Path) -> None:
    trainers = [prepare_method(method, "past", tmp_path, 1e-3, 0) for method in RATES]
    counts = [sum(parameter.numel() for parameter in trainer.adapter.parameters) for trainer in trainers]
    assert max(counts) < 1.2 * min(counts)


@pytest.mark.parametrize("method", list(RATES))
def test_training_changes_the_model_and_lowers_the_loss(method: str, tmp_path: Path) -> None:
    trainer = prepare_method(method, "past", tmp_path, RATES[method][1], 0)
    task = trainer.task
    assert isinstance(task, TextTask)
    given = task.language.tokenizer("This is a story about Mara and a goat.", return_tensors="pt")["input_ids"]

    def logits() -> torch.Tensor:
        with task.adapter.enabled(training=False), torch.no_grad():
            found: torch.Tensor = task.language.model(input_ids=given).logits
        return found

    before, first = logits(), float(task.loss(0).detach())
    assert before.shape[1] == given.shape[1]
    trainer.run()
    assert not torch.equal(before, logits())
    with task.adapter.enabled(training=False), torch.no_grad():
        assert float(task.loss(0)) < first


def test_a_run_has_all_numbers(tmp_path: Path) -> None:
    run = run_method("prompt tuning", "past", tmp_path, 1e-2, 0, prompts=2)
    assert run.validation_loss > 1
    assert run.drift > 0
    assert run.speed > 0
    assert run.size > 4 * run.parameters


def test_drift_of_the_plain_model_is_0() -> None:
    language = bundled_model()
    past, plain = (validation_tokens(language, style) for style in ("past", "plain"))
    assert divergence(language, language, plain) == 0
    assert mean_loss(language, past) > mean_loss(language, plain)


RUN = Run("hypernetwork", 1e-3, 0, 1.0, 0.1, 100, 10, 5, 1000, shown=0.5, grammatical=0.5)


def test_the_best_rate_is_trained_from_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(method: str, style: str, work: Path, rate: float, seed: int, prompts: int) -> Run:
        asked.append((method, rate, seed))
        return replace(RUN, method=method, rate=rate, seed=seed, validation_loss=abs(rate - RATES[method][1]))

    monkeypatch.setattr(methods, "run_method", run)
    runs = run_all("past", tmp_path, 5)
    assert [(one.method, one.rate, one.seed) for one in runs] == [
        (method, rates[1], seed) for method, rates in RATES.items() for seed in SEEDS
    ]
    count = len(asked)
    assert count == len(RATES) * 5
    assert run_all("past", tmp_path, 5) == runs
    assert len(asked) == count
    assert len(list(tmp_path.glob("*.json"))) == count
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["shown"] == 0.5


def test_table_has_means_and_ranges() -> None:
    *_, line = table([RUN, replace(RUN, seed=1, shown=1.0, speed=300)], COLUMNS)
    assert "| 75.0% (50.0% to 100.0%) |" in line
    assert "| 200 |" in line
    assert line.startswith("| hypernetwork | 5 | 0.001 |")
