"""The webui's `.pt.optim` next to a hypernetwork."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import hnloader
from hnloader.errors import HypernetworkError
from hnloader.training import prepare, train
from tests.support.trainings import Run


def companion_of(start: Path, **changes: object) -> dict[str, Any]:
    hypernetwork = hnloader.load(start).float().requires_grad_(True)
    optimizer = torch.optim.AdamW(hypernetwork.parameters(), lr=1e-3)
    for parameter in hypernetwork.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    whole = hashlib.sha256(start.read_bytes()).hexdigest()
    made = {"optimizer_name": "AdamW", "hash": whole[:10], "optimizer_state_dict": optimizer.state_dict()}
    return {key: value for key, value in {**made, **changes}.items() if value != "left out"}


def old_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


def test_start_from_a_webui_file_and_its_optimizer(settings_of: Run, tmp_path: Path) -> None:
    start = train(settings_of("start.pt", steps=3, ema_decay=0)).output
    hypernetwork = hnloader.load(start).float().requires_grad_(True)
    optimizer = torch.optim.AdamW(hypernetwork.parameters(), lr=1e-3)
    for parameter in hypernetwork.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    companion = {
        "optimizer_name": "AdamW",
        "hash": hashlib.sha256(start.read_bytes()).hexdigest()[:10],
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(companion, start.with_name("start.pt.optim"))
    training = prepare(settings_of("next.pt", start_from=str(start)))
    assert not any("optimizer" in note for note in training.notes)
    found = training.optimizer.state_dict()["state"]
    expected = optimizer.state_dict()["state"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[index]["exp_avg"], expected[index]["exp_avg"]) for index in expected)
    assert training.run().step == 12

    torch.save({**companion, "hash": "0" * 10}, start.with_name("start.pt.optim"))
    other = prepare(settings_of("other.pt", start_from=str(start)))
    assert "belongs to another file" in other.notes[-1]


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", ["AdamW", None, "left out"])
def test_files_of_old_webuis(large: bool, name: object, settings_of: Run, tmp_path: Path) -> None:
    """With the old hash of eight digits, and without a name for the optimizer, which was AdamW."""
    structure = [1, 120, 1] if large else [1, 2, 1]
    start = train(settings_of("start.pt", steps=1, ema_decay=0, hypernetwork__layer_structure=structure)).output
    assert (start.stat().st_size > 0x100000) == large
    beside = start.with_name("start.pt.optim")
    torch.save(companion_of(start, optimizer_name=name, hash=old_hash(start)), beside)
    training = prepare(settings_of("next.pt", start_from=str(start), steps=2))
    assert not any("optimizer" in note for note in training.notes)
    assert len(training.optimizer.state_dict()["state"]) == len(training.adapter.parameters)
    assert training.run().step == 2
    torch.save(companion_of(start, optimizer_name=name, hash="0" * 8), beside)
    assert "belongs to another file" in prepare(settings_of("other.pt", start_from=str(start))).notes[-1]


def test_files_that_do_not_fit(settings_of: Run, tmp_path: Path) -> None:
    start = train(settings_of("start.pt", steps=1, ema_decay=0)).output
    beside = start.with_name("start.pt.optim")
    sound = companion_of(start)
    state = sound["optimizer_state_dict"]["state"]
    broken: list[object] = [
        {**state, 0: {**state[0], "exp_avg": torch.zeros(3)}},
        {**state, 0: {"step": torch.tensor(1.0)}},
        {**state, 0: {**state[0], "exp_avg": "x"}},
        {**state, 0: {**state[0], "exp_avg_sq": torch.full_like(state[0]["exp_avg_sq"], float("nan"))}},
        {**state, 0: {**state[0], "step": None}},
    ]
    for each in broken:
        torch.save({**sound, "optimizer_state_dict": {**sound["optimizer_state_dict"], "state": each}}, beside)
        with pytest.raises(HypernetworkError, match=r"start.pt.optim"):
            prepare(settings_of("next.pt", start_from=str(start)))
