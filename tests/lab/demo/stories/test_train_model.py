"""The language model trains, resumes, and is written in a form that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab.demo.stories.tokens import END_ID, PAD_ID, UNKNOWN_ID, build_tokenizer
from lab.demo.stories.train_model import BATCH, loss_of, main, new_model, rows


def test_rows_are_new_stories() -> None:
    tokenizer = build_tokenizer()
    first, second = rows(tokenizer, 0), rows(tokenizer, 1)
    for row in (*first, *second):
        assert (row == END_ID).sum() == 1
        assert (row[row.argmin() + 1 :] == PAD_ID).all()
        assert (row[: row.argmin()] > UNKNOWN_ID).all()
    assert len({tokenizer.decode(row.tolist()) for row in (*first, *second)}) == 2 * BATCH


def test_loss_falls() -> None:
    tokenizer = build_tokenizer()
    model = new_model(tokenizer)
    loss = loss_of(model, tokenizer, 0)
    loss.backward()
    for parameter in model.parameters():
        parameter.data -= 0.1 * parameter.grad / parameter.grad.norm()
    assert loss_of(model, tokenizer, 0) < loss


def test_training_needs_a_limit(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--work", str(tmp_path)])


@pytest.mark.slow
def test_training_resumes_and_writes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    for steps in ("1", "2"):
        assert main(["--work", str(tmp_path), "--out", str(out), "--steps", steps, "--report-prompts", "2"]) == 0
    assert "resumed at step 1" in capsys.readouterr().out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert sum(file.stat().st_size for file in out.iterdir()) < 3_000_000
