"""Training in two processes on the CPU, on images and on texts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hnloader
from hnloader.prediction.predictor_file import load_predictor
from hnloader.training import train
from hnloader.training.config import read_config
from hnloader.training.run_folder import run_folder
from hnloader.training.state import states
from hnloader.training.status import read_status
from tests.support.predictors import SETTINGS, save_styles
from tests.support.small_language_models import save_language_model, save_texts, sentences
from tests.support.trainings import weights

pytestmark = pytest.mark.slow

_SECONDS = 300


@pytest.fixture(params=["images", "texts"])
def given(request: pytest.FixtureRequest, tiny_model: Path, images: Path, tmp_path: Path) -> dict[str, object]:
    settings: dict[str, object] = {"previews.every_n_steps": 0, "validate_every_n_steps": 2, "lr_warmup_steps": 0}
    # AdamW would turn the rounding errors of small gradients into steps of full size.
    settings |= {"hypernetwork.dropout": 0, "optimizer": "sgd", "learning_rate": 1, "save_every_n_steps": 2}
    if request.param == "images":
        return {**settings, "model": str(tiny_model), "images": str(images)}
    model = save_language_model(tmp_path / "llm")
    texts = save_texts(tmp_path / "texts", sentences(40))
    return {**settings, "model": str(model), "texts": str(texts), "text.block_size": 32, "batch_size": 2}


def start(settings: dict[str, object], *more: str) -> subprocess.Popen[str]:
    """Start a training with torchrun, as a terminal does, so that a signal can reach all its processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hnloader"]
    command = "train-predictor" if "styles" in settings else "train"
    values = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        [sys.executable, *launch, command, *values, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_two_processes_train_as_one_with_twice_the_batch(given: dict[str, object], tmp_path: Path) -> None:
    together = {**given, "steps": 4, "output": str(tmp_path / "style.safetensors")}
    process = start(together)
    printed, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, printed[-8000:]
    assert printed.count("status done") == 1  # one process prints
    output = tmp_path / "style.safetensors"
    assert hnloader.load(output).metadata["step"] == 4
    assert [path.name for path in states(run_folder(output))] == [f"state-0000000{step}.safetensors" for step in (2, 4)]

    made = weights(output)
    difference = {}
    for parts in (1, 2):
        alone = {**together, "output": str(tmp_path / f"{parts}" / output.name), "gradient_accumulation_steps": parts}
        result = train(read_config(None, alone))
        pairs = zip(made, weights(result.output), strict=True)
        difference[parts] = max(float((found - value).abs().max()) for found, value in pairs)
    assert difference[2] < 0.01 * difference[1]


def test_two_processes_train_a_predictor_as_one_with_twice_the_batch(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictor.safetensors"
    given: dict[str, object] = {**SETTINGS, "optimizer": "sgd", "learning_rate": 0.1, "ema_decay": 0, "steps": 3}
    given |= {"model": str(tiny_model), "styles": str(save_styles(tmp_path / "styles")), "output": str(output)}
    process = start(given)
    printed, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, printed[-8000:]
    assert printed.count("status done") == 1
    assert load_predictor(output).about.step == 3

    made, difference = load_file(output), {}
    for parts in (1, 2):
        alone = {**given, "output": str(tmp_path / f"{parts}" / output.name), "gradient_accumulation_steps": parts}
        found = load_file(train(read_config(None, alone, "predictor")).output)
        difference[parts] = max(float((found[name] - value).abs().max()) for name, value in made.items())
    assert difference[2] < 0.01 * difference[1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no groups of processes with signals")
def test_ctrl_c_stops_both_processes_after_the_same_step(given: dict[str, object], tmp_path: Path) -> None:
    output = tmp_path / "style.safetensors"
    given = {**given, "output": str(output), "save_every_n_steps": 100_000}
    process = start(given, "--steps", "100000")
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("step 1 of"):
        assert line, process.wait()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=_SECONDS)
    (state,) = states(run_folder(output))
    step = int(state.stem.removeprefix("state-"))
    status = read_status(run_folder(output))
    assert status is not None
    assert (status.phase, status.step) == ("interrupted", step)

    process = start(given, "--steps", str(step + 2), "--resume")
    printed, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, printed[-8000:]
    assert hnloader.load(output).metadata["step"] == step + 2
