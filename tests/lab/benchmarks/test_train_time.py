from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from lab.benchmarks import train_time
from lab.benchmarks.train_time import CACHED, OURS, PLAIN, Bench


def test_plain_loops_compute_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    bench = Bench(
        "tiny",
        lambda: StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None),
        {"batch_size": 2, "learning_rate": "1e-3", "lr_warmup_steps": 2},
        seconds=0,
        compared=5,
        has_targets=True,
    )
    result = train_time.measure(bench, tmp_path)
    assert result.rounds.count >= 3
    assert len(result.losses[OURS]) == 5
    assert len(set(result.losses[OURS])) == 5
    for way in (PLAIN, CACHED):
        assert result.losses[OURS] == pytest.approx(result.losses[way], rel=1e-5)
    assert result.memory[OURS].peak < result.memory[CACHED].peak
    assert "tiny" in train_time.result_table([result])
    assert "first 5 steps" in train_time.notes([result])
    assert len(train_time.targets([result])) == 3
    assert result.to_json()["difference"] == result.difference
