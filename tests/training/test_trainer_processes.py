"""Training on several devices, here two processes on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hnloader
from hnloader.training.run_folder import run_folder
from hnloader.training.state import states


@pytest.mark.slow
def test_two_processes_train_together_and_write_one_file(tiny_model: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "style.pt"
    quick = ["--set", "previews.every_n_steps=0", "--set", "validate_every_n_steps=2", "--set", "save_every_n_steps=2"]
    given = ["train", "--model", tiny_model, "--images", images, "-o", output, "--steps", 4, *quick]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "hnloader"]
    command = [str(each) for each in [sys.executable, *launch, *given]]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert hnloader.load(output).metadata["step"] == 4
    assert [path.name for path in states(run_folder(output))] == [f"state-0000000{step}.safetensors" for step in (2, 4)]
