"""`hnloader compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hnloader.cli.app import app
from hnloader.training import Config, method_comparison
from hnloader.training.method_comparison import RATE_FACTORS, MethodResult, Plan
from tests.support.tiny_model import save_images
from tests.support.trainings import config_in

QUICK = [
    "steps=6",
    "validate_every_n_steps=3",
    "previews.every_n_steps=0",
    "previews.num_inference_steps=2",
    "learning_rate=1e-3",
    "batch_size=2",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_images(tmp_path / "images")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *(str(each) for each in arguments)])
    return result.exit_code, result.stdout, result.stderr


def settings(tiny_model: Path, folder: Path, output: Path) -> list[str]:
    given = [*QUICK, f"model={tiny_model}", f"images={folder}", f"output={output}"]
    return [part for each in given for part in ("--set", each)]


def test_all_methods_are_trained_and_compared(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    given = [*settings(tiny_model, folder, tmp_path / "style.pt"), "--one-rate"]
    code, out, err = run("-p", "a cat", "-p", "a dog", "--out", tmp_path / "report", *given)
    assert code == 0, err
    assert "style (palette)" in out
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [each["method"] for each in found["results"]] == ["hypernetwork", "embedding", "lora"]
    for each in found["results"]:
        assert each["steps"] == 6
        assert each["size"] == (tmp_path / each["path"]).stat().st_size
        assert each["drift"] >= 0
        assert each["validation_loss"] > 0
    # Unrelated prompts do not contain the token of the embedding.
    assert found["results"][1]["drift"] == 0
    assert found["results"][0]["drift"] > 0
    assert any("changes unrelated prompts least" in line for line in found["conclusion"])
    assert all(line in err for line in found["conclusion"])
    page = (tmp_path / "report" / "report.html").read_text()
    assert "validation loss" in page
    with Image.open(tmp_path / "report" / "grid.png") as grid:
        assert grid.width > grid.height

    before = (tmp_path / "style-hypernetwork.pt").read_bytes()
    assert run("-p", "a cat", "--out", tmp_path / "again", *given)[0] == 0
    assert (tmp_path / "style-hypernetwork.pt").read_bytes() == before


def test_finished_files_are_used(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    given = [*settings(tiny_model, folder, tmp_path / "style.pt"), "--one-rate"]
    assert run("-p", "a cat", "--out", tmp_path / "one", *given)[0] == 0
    files = {method: tmp_path / f"style-{method}.pt" for method in ("hypernetwork", "embedding")}
    files["lora"] = tmp_path / "style-lora.safetensors"
    bytes_before = {method: path.read_bytes() for method, path in files.items()}
    options = [part for method, path in files.items() for part in (f"--{method}", path)]
    code, _, err = run(
        "-p", "a cat", "--out", tmp_path / "two", *settings(tiny_model, folder, tmp_path / "b.pt"), *options
    )
    assert code == 0, err
    assert {method: path.read_bytes() for method, path in files.items()} == bytes_before
    one, two = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("one", "two"))
    for a, b in zip(one["results"], two["results"], strict=True):
        assert b["steps"] is None
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-5)
        assert b["metrics"] == pytest.approx(a["metrics"], rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--prompts"),
        (("--prompts", "none.txt"), "none.txt"),
        (("-p", "a", "--lpips"), "pip install lpips"),
        (("-p", "a", "--hypernetwork", "none.pt"), "none.pt"),
        (("-p", "a", "--methods", "lora"), "two or more"),
        (("-p", "a", "--methods", "lora,lorra"), "lorra"),
        (("-p", "a", "--methods", "embedding,lora", "--equal-parameters"), "hypernetwork"),
        (("-p", "a", "--set", "previews.stepps=1"), "previews.stepps"),
    ],
)
def test_mistakes_give_a_message(
    arguments: tuple[str, ...],
    words: str,
    tiny_model: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    code, _, err = run(*arguments, "--out", tmp_path / "report", *settings(tiny_model, folder, tmp_path / "style.pt"))
    assert code == 1
    assert words in " ".join(err.split())
    assert not (tmp_path / "report").exists()


def test_lpips_measures_the_drift_of_unrelated_prompts(
    tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("lpips")
    package.LPIPS = lambda net, verbose: torch.nn.L1Loss()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    given = [*settings(tiny_model, folder, tmp_path / "style.pt"), "--one-rate", "--methods", "hypernetwork,embedding"]
    code, out, err = run("-p", "a cat", "--lpips", "--out", tmp_path / "report", *given)
    assert code == 0, err
    assert "drift (LPIPS)" in out
    found = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert found["without"]["drift (LPIPS)"] == 0
    hypernetwork, embedding = (each["metrics"]["drift (LPIPS)"] for each in found["results"])
    assert hypernetwork > embedding == 0
    assert any("least (drift (LPIPS)" in line for line in found["conclusion"])


def test_the_learning_rate_with_the_lowest_loss_counts(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    given = settings(tiny_model, folder, tmp_path / "style.pt")
    code, _, err = run(
        "-p", "a cat", "--methods", "lora,hypernetwork", "--equal-parameters", "--out", tmp_path / "report", *given
    )
    assert code == 0, err
    lora, hypernetwork = json.loads((tmp_path / "report" / "comparison.json").read_text())["results"]
    assert lora["method"] == "lora"
    assert lora["parameters"] == pytest.approx(hypernetwork["parameters"], rel=0.2)
    for result, suffix in ((lora, "safetensors"), (hypernetwork, "pt")):
        folder_of_rates = tmp_path / f"style-{result['method']}-rates"
        assert {path.name for path in folder_of_rates.iterdir()} == {"0.000333", "0.001", "0.003"}
        assert (
            folder_of_rates / f"{float(result['learning_rate']):.3g}" / f"style-{result['method']}.{suffix}"
        ).is_file()


def test_the_lowest_validation_loss_decides(
    tiny_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def run_with(config: Config, plan: Plan, callback: object) -> tuple[MethodResult, SimpleNamespace]:
        tried.append((config.method, float(config.learning_rate)))
        losses = {"embedding": [0.3, 0.1, 0.2], "lora": [0.1, 0.2, 0.3]}[config.method]
        loss = losses[len(tried) % 3 - 1]
        return MethodResult(
            config.method, Path(config.output), learning_rate=config.learning_rate_text, validation_loss=loss
        ), SimpleNamespace()

    monkeypatch.setattr(method_comparison, "_run", run_with)
    config = config_in(tmp_path, tiny_model, learning_rate="3e-4")
    plan = Plan(config, ["a"], methods=("embedding", "lora"), rate_factors=RATE_FACTORS)
    found = [result.learning_rate for result, _ in method_comparison._runs(plan, None)]
    assert [float(rate) for rate in found] == [pytest.approx(3e-4), pytest.approx(1e-4)]
    assert [method for method, _ in tried] == ["embedding"] * 3 + ["lora"] * 3
