"""Refine a LoRA end to end, with a simulated clock."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hnloader import HypernetworkError, LoraOptions
from hnloader.conversion.lora import export_lora, refining
from hnloader.network import Architecture, Hypernetwork
from tests.support.lora_models import QUICK, Pipelines, make_random, read, simulate_refining
from tests.support.small_models import WIDTHS, make_unet

MINUTES = 0.4


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_refining(monkeypatch)


def curved(kind: str = "sd1") -> Hypernetwork:
    """A random nonlinear hypernetwork, small enough for a LoRA to come close."""
    made = make_random(WIDTHS[kind], Architecture((1, 2, 1), "relu"))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(0.7)
    return made


def options(**changes: Any) -> LoraOptions:
    return LoraOptions(**{**QUICK, "rank": 4, "refine": MINUTES, **changes})


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_output_of_the_unet_comes_closer(kind: str, tmp_path: Path, pipelines: Pipelines) -> None:
    """From rank 1, which leaves much to learn."""
    pipe = pipelines(kind)
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    fitted = export_lora(curved(kind), pipe, tmp_path / "fit.safetensors", options(rank=1, refine=0))
    made = export_lora(curved(kind), pipe, tmp_path / "refined.safetensors", options(rank=1, refine=0.6))
    found = made.refinement
    assert fitted.refinement is None and found is not None
    assert found.after < found.before and found.steps > 20 and not found.interrupted
    assert fitted.ranks.items() <= made.ranks.items()
    others = {re.sub(r".*blocks\.\d+\.", "", name) for name in made.ranks.keys() - fitted.ranks.keys()}
    attention = {f"attn{number}.{name}" for number in (1, 2) for name in ("to_q", "to_out.0")}
    assert attention | {"ff.net.0.proj", "ff.net.2"} == others
    stated = json.loads(read(made.path)[1]["hnloader.refinement"])
    assert stated["after"] == found.after
    assert json.loads(read(made.path)[1]["hnloader.settings"])["refine"] == 0.6
    # Keys and values are measured again.
    assert made.errors.to_json() != fitted.errors.to_json()
    after = pipe.unet.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())


def test_the_unet_alone_learns_on_random_inputs(tmp_path: Path) -> None:
    made = export_lora(curved(), make_unet(), tmp_path / "x.safetensors", options(rank=2))
    assert made.refinement is not None and made.refinement.after <= made.refinement.before


@pytest.mark.parametrize("text", ["Sampling contexts", "Refining"])
def test_an_interruption_keeps_the_best_so_far(text: str, tmp_path: Path, pipelines: Pipelines) -> None:
    calls = 0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal calls
        calls += what == text
        if calls > 60 or (what == text and text == "Sampling contexts"):
            raise KeyboardInterrupt

    def export() -> Any:
        return export_lora(curved(), pipelines("sd1"), tmp_path / "x.safetensors", options(), progress=progress)

    if text == "Sampling contexts":  # there is nothing to keep yet
        with pytest.raises(KeyboardInterrupt):
            export()
        assert not list(tmp_path.iterdir())
        return
    made = export()
    assert made.refinement is not None and made.refinement.interrupted
    assert 0 < made.refinement.steps < 60 and made.refinement.after <= made.refinement.before


def test_an_interruption_before_the_first_step_keeps_the_fit(tmp_path: Path, pipelines: Pipelines) -> None:
    def progress(done: int, total: int, what: str) -> None:
        if what == "Refining":
            raise KeyboardInterrupt

    pipe = pipelines("sd1")
    fitted = export_lora(curved(), pipe, tmp_path / "fit.safetensors", options(refine=0))
    made = export_lora(curved(), pipe, tmp_path / "x.safetensors", options(), progress=progress)
    assert made.refinement is None and "Not refined" in made.warnings[0]
    one, two = read(fitted.path)[0], read(made.path)[0]
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_steps_that_make_it_worse_change_nothing(
    tmp_path: Path, pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refining, "_RATE", 50.0)
    pipe = pipelines("sd1")
    fitted = export_lora(curved(), pipe, tmp_path / "fit.safetensors", options(refine=0))
    made = export_lora(curved(), pipe, tmp_path / "x.safetensors", options())
    assert made.refinement is not None and made.refinement.after == made.refinement.before
    one, two = read(fitted.path)[0], read(made.path)[0]
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("changes", [{"refine": -1.0}, {"refine": float("inf")}, {"refine": 1.0, "kind": "lycoris"}])
def test_impossible_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(HypernetworkError):
        LoraOptions(**changes)


def test_a_short_time_is_reported(tmp_path: Path, pipelines: Pipelines) -> None:
    made = export_lora(curved(), pipelines("sd1"), tmp_path / "x.safetensors", options(refine=0.01))
    assert made.refinement is None and "more minutes" in made.warnings[0]


def test_float16_files_hold_refined_factors(tmp_path: Path, pipelines: Pipelines) -> None:
    made = export_lora(curved(), pipelines("sd1"), tmp_path / "x.safetensors", options(dtype=torch.float16))
    assert {tensor.dtype for tensor in read(made.path)[0].values()} == {torch.float16}
    assert made.refinement is not None and made.refinement.after <= made.refinement.before
