"""The nodes that apply hypernetworks."""

from __future__ import annotations

import shutil

import pytest
import torch

from hnloader.errors import HypernetworkNotFoundError, PromptTagError
from tests.support.builders import relative_error
from tests.support.paths import GOLDENS
from tests.support.standins.comfyui_host import Host
from tests.support.standins.comfyui_model import make_model, sample


def test_a_prompt_equals_a_chain_of_nodes(comfyui: Host) -> None:
    model, node = make_model(), comfyui.node("HypernetworksFromPrompt")
    prompt = "a boat <hypernet:ink:0.7:block=up,start=0.5> at night <lora:x:1><hypernet:linear_121:0.4:k=0.5>"
    changed, rest = node.apply(model, prompt)
    assert rest == "a boat  at night <lora:x:1>"
    chain = comfyui.load(model, "styles/ink.pt", 0.7, blocks="up", start=0.5, window="steps")
    chain = comfyui.load(chain, "linear_121.pt", 0.4, k=0.5)
    assert torch.equal(sample(changed), sample(chain))


def test_a_prompt_without_tags_changes_nothing(comfyui: Host) -> None:
    model = make_model()
    assert comfyui.node("HypernetworksFromPrompt").apply(model, "a boat") == (model, "a boat")


@pytest.mark.parametrize(
    ("prompt", "error"), [("<hypernet:inc>", HypernetworkNotFoundError), ("<hypernet:ink:x>", PromptTagError)]
)
def test_wrong_tags_stop_the_workflow(prompt: str, error: type[Exception], comfyui: Host) -> None:
    node = comfyui.node("HypernetworksFromPrompt")
    with pytest.raises(error):
        node.apply(make_model(), prompt)
    with pytest.raises(error) as raised:
        node.IS_CHANGED(prompt=prompt)
    assert node.VALIDATE_INPUTS(prompt=prompt) == str(raised.value)
    assert node.VALIDATE_INPUTS(prompt="<hypernet:ink:0.5>") is True
    assert node.VALIDATE_INPUTS() is True  # connected to another node


def test_a_changed_file_changes_the_result_of_a_prompt(comfyui: Host) -> None:
    node = comfyui.node("HypernetworksFromPrompt")
    for inputs in ({"prompt": "<hypernet:ink>"}, {}):  # {}: the prompt comes from another node
        shutil.copy(GOLDENS / "relu_121.pt", comfyui.folder / "styles" / "ink.pt")
        before = node.IS_CHANGED(**inputs)
        assert node.IS_CHANGED(**inputs) == before
        shutil.copy(GOLDENS / "mish_1221_ln.pt", comfyui.folder / "styles" / "ink.pt")
        assert node.IS_CHANGED(**inputs) != before


def test_a_sweep_makes_a_model_for_each_strength(comfyui: Host) -> None:
    model, node = make_model(), comfyui.node("HypernetworkStrengths")
    models, labels = node.sweep(model, "relu_121.pt", " 0, 0.5,-1 ,", blocks="up")
    assert labels == ["0", "0.5", "-1"]
    assert torch.equal(sample(models[0]), sample(model))
    for found, strength in zip(models[1:], (0.5, -1.0), strict=True):
        assert torch.equal(sample(found), sample(comfyui.load(model, "relu_121.pt", strength, blocks="up")))
    assert relative_error(sample(models[1]), sample(models[2])) > 1e-4


@pytest.mark.parametrize("text", ["", "0, high", "nan", "inf"])
def test_strengths_must_be_numbers(text: str, comfyui: Host) -> None:
    with pytest.raises(ValueError, match="Strength"):
        comfyui.node("HypernetworkStrengths").sweep(make_model(), "relu_121.pt", text)


@pytest.mark.parametrize("given", [{"strength": float("nan")}, {"strength": 1.0, "k": float("inf")}])
def test_numbers_must_be_finite(given: dict[str, float], comfyui: Host) -> None:
    with pytest.raises(ValueError, match="finite"):
        comfyui.load(make_model(), "relu_121.pt", **given)


def test_the_nodes_name_their_inputs(comfyui: Host) -> None:
    for name, node in comfyui.pack.NODE_CLASS_MAPPINGS.items():
        assert name in comfyui.pack.NODE_DISPLAY_NAME_MAPPINGS and node.DESCRIPTION.endswith(".") and node.CATEGORY
        inputs = {**node.INPUT_TYPES().get("required", {}), **node.INPUT_TYPES().get("optional", {})}
        missing = [each for each, (_, more) in inputs.items() if "tooltip" not in more]
        assert missing == []
        assert callable(getattr(node(), node.FUNCTION))
